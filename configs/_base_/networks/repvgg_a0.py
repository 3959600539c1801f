_base_ = 'classifier.py'

model = dict(backbone=dict(type='RepVGG', arch='A0', strides=(1, 2, 2, 2), out_indices=(3,)), head=dict(in_channels=1280))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[130], gamma=0.1)
