# With ASR(SE). It is trained from scratch, so it does not use init_identity, which is for pretrained
# backbones.
_base_ = 'fpn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNetV1c', asr=dict(attention=dict(type='SE'))))
