_base_ = 'mask_rcnn_r50_asr_se.py'

model = dict(backbone=dict(convs=dict(type='XVolution', init_identity=True)))
