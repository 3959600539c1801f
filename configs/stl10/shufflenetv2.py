_base_ = ['../_base_/datasets/stl10.py', '../_base_/networks/shufflenetv2.py']
