_base_ = ['../_base_/cifar10.py', '../_base_/shufflenetv2_asr_se.py']
