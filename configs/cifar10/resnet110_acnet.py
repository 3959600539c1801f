_base_ = [
    '../_base_/datasets/cifar10.py',
    '../_base_/networks/resnet110_acnet.py',
    '../_base_/schedules/cosine_164.py',
    '../_base_/default_runtime.py',
]
