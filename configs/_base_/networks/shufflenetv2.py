# ShuffleNetV2 without the stride and the pooling of its stem, so that 32 pixels are not shrunk to one.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ShuffleNetV2CIFAR'), head=dict(in_channels=1024))
