_base_ = ['../_base_/datasets/stl10.py', '../_base_/networks/resnet56_acnet_asr_se.py']
