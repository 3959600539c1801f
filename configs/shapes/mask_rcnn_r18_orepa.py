# OREPA on the embedded default, trained from scratch and so without init_identity, which is for a pretrained backbone.
_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', convs=dict(type='OREPA')))
