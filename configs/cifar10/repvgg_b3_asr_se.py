_base_ = ['../_base_/cifar10.py', '../_base_/repvgg_b3_asr_se.py']
