_base_ = ['../_base_/cifar10.py', '../_base_/resnet164_asr_se.py']
