_base_ = 'resnet50_asr_se_se.py'

model = dict(backbone=dict(depth=101))
