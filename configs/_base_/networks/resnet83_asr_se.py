_base_ = 'resnet164_asr_se.py'

model = dict(backbone=dict(depth=83))
