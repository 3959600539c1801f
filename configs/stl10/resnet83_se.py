_base_ = ['../_base_/stl10.py', '../_base_/resnet83_se.py']
