_base_ = 'classifier.py'

model = dict(backbone=dict(type='VGG', depth=19, norm_cfg=dict(type='BN')), head=dict(in_channels=512))
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[60, 120, 160], gamma=0.2)
