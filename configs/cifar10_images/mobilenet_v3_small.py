# MobileNetV3-Small, whose SE tools/reparam.py removes after training (docs/remove-attention.md).
_base_ = [
    '../_base_/datasets/cifar10_images_64.py',
    '../_base_/networks/classifier.py',
    '../_base_/schedules/adamw_30.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(type='MobileNetV3', arch='small'), head=dict(in_channels=576))
default_hooks = dict(checkpoint=dict(save_best=None))
custom_hooks = [dict(type='mmasr.ChannelsLastHook')]
