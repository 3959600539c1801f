_base_ = ['../_base_/cifar100.py', '../_base_/mobilenet_asr_se.py']

model = dict(head=dict(num_classes=100))
