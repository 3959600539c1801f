_base_ = 'resnet50_asr_se.py'

model = dict(backbone=dict(depth=34), head=dict(in_channels=512))
