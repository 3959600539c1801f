_base_ = ['../_base_/datasets/cifar10.py', '../_base_/networks/resnet83_asr_se.py']
