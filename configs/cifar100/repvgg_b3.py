_base_ = ['../_base_/datasets/cifar100.py', '../_base_/networks/repvgg_b3.py']

model = dict(head=dict(num_classes=100))
