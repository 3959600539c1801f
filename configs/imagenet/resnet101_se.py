_base_ = 'resnet50_se.py'

model = dict(backbone=dict(depth=101))
