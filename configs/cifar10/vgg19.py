_base_ = [
    '../_base_/datasets/cifar10.py',
    '../_base_/networks/vgg19.py',
    '../_base_/schedules/step_60_120_160.py',
    '../_base_/default_runtime.py',
]
