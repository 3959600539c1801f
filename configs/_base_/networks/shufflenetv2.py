_base_ = 'vgg19.py'  # the same recipe

model = dict(backbone=dict(_delete_=True, type='mmasr.ShuffleNetV2CIFAR'), head=dict(in_channels=1024))
