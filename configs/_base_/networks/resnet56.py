# The CIFAR ResNet of 56 layers, as ACNet's authors compare with it.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=56), head=dict(in_channels=64))
