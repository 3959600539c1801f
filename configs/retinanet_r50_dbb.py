_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', convs=dict(type='DBB', init_identity=True)))
