_base_ = ['resnet164_noise.py', '../_base_/half.py']

model = dict(backbone=dict(init_cfg=_base_.half))
