_base_ = ['../_base_/datasets/cifar100.py', '../_base_/networks/shufflenetv2_asr_se.py']

model = dict(head=dict(num_classes=100))
