# ShuffleNetV2 with stride 1 and without pooling in its stem, so that 32 pixels are not reduced to one.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.ShuffleNetV2CIFAR'), head=dict(in_channels=1024))
