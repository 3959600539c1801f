# The CIFAR ResNet with 20 layers.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=20), head=dict(in_channels=64))
