_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', convs=dict(type='QARepVGG')))
