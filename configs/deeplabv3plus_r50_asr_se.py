_base_ = 'deeplabv3plus_r50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(type='mmasr.ASRResNetV1c', asr=dict(attention=dict(type='SE'), init_identity=True))
)
