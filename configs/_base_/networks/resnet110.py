# The CIFAR ResNet with 110 layers, the baseline in the ACNet paper.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ResNetCIFAR', depth=110), head=dict(in_channels=64))
