_base_ = 'resnet83.py'

model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv3')]))
