_base_ = ['../_base_/cifar100.py', '../_base_/shufflenetv2.py']

model = dict(head=dict(num_classes=100))
