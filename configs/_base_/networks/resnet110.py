# The CIFAR ResNet of 110 layers, as ACNet's authors compare with it.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=110), head=dict(in_channels=64))
