_base_ = ['../_base_/cifar100.py', '../_base_/resnet83.py']

model = dict(head=dict(num_classes=100))
