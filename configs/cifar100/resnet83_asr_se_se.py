_base_ = ['../_base_/datasets/cifar100.py', '../_base_/networks/resnet83_asr_se_se.py']

model = dict(head=dict(num_classes=100))
