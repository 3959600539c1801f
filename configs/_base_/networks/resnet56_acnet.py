# The network on which ACNet's authors used it for CIFAR.
_base_ = 'classifier.py'

model = dict(
    backbone=dict(type='mmasr.ResNetCIFAR', depth=56, conv_cfg=dict(type='ACNet')),
    head=dict(in_channels=64),
)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=164)
