_base_ = ['../_base_/datasets/cifar100.py', '../_base_/networks/resnet56_acnet_asr_se.py']

model = dict(head=dict(num_classes=100))
