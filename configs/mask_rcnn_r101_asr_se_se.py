_base_ = 'mask_rcnn_r101_se.py'

model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='SE'), init_identity=True)))
