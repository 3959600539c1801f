_base_ = ['../_base_/stl10.py', '../_base_/resnet164_asr_se_se.py']
