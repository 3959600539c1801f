_base_ = 'resnet101_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
