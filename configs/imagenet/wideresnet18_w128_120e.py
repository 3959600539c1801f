# WideResNet-18 (2x): ResNet-18 with 128 instead of 64 base channels.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/cosine_120.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(base_channels=128, stem_channels=128, zero_init_residual=False),
    head=dict(in_channels=1024),
)
