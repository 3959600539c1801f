_base_ = 'mask_rcnn_r101_eca.py'

model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='ECA'), init_identity=True)))
