_base_ = [
    'mmpretrain::_base_/models/resnet34.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/step_30_60_90.py',
    '../_base_/default_runtime.py',
]
