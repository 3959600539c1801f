_base_ = [
    '../_base_/datasets/cifar100.py',
    '../_base_/networks/vgg19.py',
    '../_base_/schedules/step_60_120_160.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=100))
