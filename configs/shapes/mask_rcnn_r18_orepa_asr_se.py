_base_ = 'mask_rcnn_r18_asr_se.py'

model = dict(backbone=dict(convs=dict(type='OREPA')))
