_base_ = ['../_base_/datasets/cifar10.py', '../_base_/networks/vgg19.py']
