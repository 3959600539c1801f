# ACNet in the CIFAR ResNet of 110 layers, where ACNet's authors have it.
_base_ = 'classifier.py'

model = dict(
    backbone=dict(type='mmasr.ASRResNetCIFAR', depth=110, convs=dict(type='ACNet')),
    head=dict(in_channels=64),
)
