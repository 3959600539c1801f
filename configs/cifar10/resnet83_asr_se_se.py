_base_ = ['../_base_/cifar10.py', '../_base_/resnet83_asr_se_se.py']
