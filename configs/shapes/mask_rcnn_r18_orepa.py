# The embedded default with OREPA. It is trained from scratch, so it does not use init_identity, which is for
# pretrained backbones.
_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', convs=dict(type='OREPA')))
