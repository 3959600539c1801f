_base_ = 'resnet56_acnet.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='SE'))))
