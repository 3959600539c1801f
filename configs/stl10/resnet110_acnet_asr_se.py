_base_ = 'resnet110_acnet.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
