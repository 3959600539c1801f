_base_ = 'resnet20_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
