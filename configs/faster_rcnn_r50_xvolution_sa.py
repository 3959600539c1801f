_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(type='mmasr.ASRResNet', convs=dict(type='XVolution', branch='sa', init_identity=True))
)
