_base_ = [
    'mmpretrain::_base_/models/repvgg-A0_in1k.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/cosine_120.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='A2'), head=dict(in_channels=1408))
