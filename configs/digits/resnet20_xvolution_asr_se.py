_base_ = 'resnet20_asr_se.py'

model = dict(backbone=dict(convs=dict(type='XVolution')))
