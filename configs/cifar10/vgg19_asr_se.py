_base_ = ['../_base_/cifar10.py', '../_base_/vgg19_asr_se.py']
