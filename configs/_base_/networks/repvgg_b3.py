_base_ = 'repvgg_a0.py'

model = dict(backbone=dict(arch='B3'), head=dict(in_channels=2560))
