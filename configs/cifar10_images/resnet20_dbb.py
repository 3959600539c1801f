_base_ = 'resnet20.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', convs=dict(type='DBB')))
