_base_ = 'resnet56.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', convs=dict(type='OREPA')))
