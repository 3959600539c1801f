# VGG19 with batch normalization, and one linear layer after global pooling.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='VGG', depth=19, norm_cfg=dict(type='BN')), head=dict(in_channels=512))
