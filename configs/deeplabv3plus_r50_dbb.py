_base_ = 'deeplabv3plus_r50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNetV1c', convs=dict(type='DBB', init_identity=True)))
