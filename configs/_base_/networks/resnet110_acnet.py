# The CIFAR ResNet with 110 layers and ACNet, at the same layers as in the ACNet paper.
_base_ = 'classifier.py'

model = dict(
    backbone=dict(type='mmasr.ASRResNetCIFAR', depth=110, convs=dict(type='ACNet')),
    head=dict(in_channels=64),
)
