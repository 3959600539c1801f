_base_ = 'resnet164_se.py'

model = dict(backbone=dict(depth=83))
