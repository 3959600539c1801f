# The CIFAR ResNet with 56 layers, the baseline in the ACNet paper.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=56), head=dict(in_channels=64))
