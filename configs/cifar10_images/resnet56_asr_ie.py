_base_ = 'resnet56.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='IE'))))
