# ASR(SE), trained from scratch and so without init_identity, which is for a pretrained backbone.
_base_ = 'fpn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNetV1c', asr=dict(attention=dict(type='SE'))))
