_base_ = ['../_base_/stl10.py', '../_base_/repvgg_a0.py']
