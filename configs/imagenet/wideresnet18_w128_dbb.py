_base_ = 'wideresnet18_w128_120e.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', norm_eval=False, convs=dict(type='DBB')))
