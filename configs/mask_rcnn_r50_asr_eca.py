_base_ = 'mask_rcnn_r50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='ECA'), init_identity=True)))
