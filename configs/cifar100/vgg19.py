_base_ = ['../_base_/cifar100.py', '../_base_/vgg19.py']

model = dict(head=dict(num_classes=100))
