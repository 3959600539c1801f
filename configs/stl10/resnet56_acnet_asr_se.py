_base_ = ['../_base_/stl10.py', '../_base_/resnet56_acnet_asr_se.py']
