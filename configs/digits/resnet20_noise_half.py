_base_ = ['resnet20_noise.py', '../_base_/half.py']

model = dict(backbone=dict(init_cfg=_base_.half))
