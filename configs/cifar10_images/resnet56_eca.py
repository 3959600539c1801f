_base_ = 'resnet56_se.py'

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmasr.ECA'), position='after_conv2')]))
