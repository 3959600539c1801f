_base_ = 'fpn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNetV1c', convs=dict(type='OREPA')))
