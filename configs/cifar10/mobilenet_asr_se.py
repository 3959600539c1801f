_base_ = ['../_base_/cifar10.py', '../_base_/mobilenet_asr_se.py']
