_base_ = 'vgg19.py'

model = dict(backbone=dict(type='mmasr.ASRVGG', asr=dict(attention=dict(type='SE'))))
