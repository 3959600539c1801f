# EfficientNet-B0, whose SE tools/reparam.py removes after training (docs/remove-attention.md).
_base_ = [
    '../_base_/datasets/cifar10_images_64.py',
    '../_base_/networks/classifier.py',
    '../_base_/schedules/adamw_30.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(type='EfficientNet', arch='b0'), head=dict(in_channels=1280))
default_hooks = dict(checkpoint=dict(save_best=None))
custom_hooks = [dict(type='mmasr.ChannelsLastHook')]
