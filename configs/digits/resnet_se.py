# The same with ordinary, input-dependent SE.
_base_ = 'resnet.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]))
