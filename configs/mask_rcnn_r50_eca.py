_base_ = 'mask_rcnn_r50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(plugins=[dict(cfg=dict(type='mmasr.ECA', init_identity=True), position='after_conv3')])
)
