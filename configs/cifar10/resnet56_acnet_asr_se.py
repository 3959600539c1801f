_base_ = 'resnet56_acnet.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='SE'))))
