# The same with ordinary, input-dependent SE.
_base_ = 'resnet20.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]))
