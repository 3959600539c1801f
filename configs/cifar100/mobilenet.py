_base_ = ['../_base_/cifar100.py', '../_base_/mobilenet.py']

model = dict(head=dict(num_classes=100))
