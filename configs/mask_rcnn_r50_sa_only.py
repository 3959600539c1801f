_base_ = 'mask_rcnn_r50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(type='mmasr.ASRResNet', convs=dict(type='XVolution', branch='sa', convolution=False))
)
