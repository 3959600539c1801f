# The CIFAR ResNet with 83 layers.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=83), head=dict(in_channels=256))
