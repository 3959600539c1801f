# VGG19 with batch normalization, global pooling and one linear layer.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='VGG', depth=19, norm_cfg=dict(type='BN')), head=dict(in_channels=512))
