# The CIFAR ResNet with 164 layers.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=164), head=dict(in_channels=256))
