_base_ = 'mask_rcnn_r50_eca.py'

model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='ECA'), init_identity=True)))
