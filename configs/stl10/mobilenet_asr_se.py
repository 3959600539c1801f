_base_ = ['../_base_/stl10.py', '../_base_/mobilenet_asr_se.py']
