_base_ = ['../_base_/cifar100.py', '../_base_/repvgg_a0.py']

model = dict(head=dict(num_classes=100))
