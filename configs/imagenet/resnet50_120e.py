_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/cosine_120.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(zero_init_residual=False))
