_base_ = ['../_base_/datasets/stl10.py', '../_base_/networks/resnet83.py']
