_base_ = 'resnet164.py'

model = dict(backbone=dict(depth=83))
