_base_ = 'resnet50_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
