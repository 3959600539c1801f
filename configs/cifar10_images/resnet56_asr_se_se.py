_base_ = 'resnet56_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
