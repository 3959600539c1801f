_base_ = 'resnet20.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='IE'))))
