_base_ = 'resnet20_noise.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='IE'))))
