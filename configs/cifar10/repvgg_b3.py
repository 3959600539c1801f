_base_ = ['../_base_/cifar10.py', '../_base_/repvgg_b3.py']
