_base_ = 'resnet34_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
