_base_ = 'vit_base.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRVisionTransformer', asr=dict(attention=dict(type='SE'))))
