_base_ = ['../_base_/stl10.py', '../_base_/vgg19_asr_se.py']
