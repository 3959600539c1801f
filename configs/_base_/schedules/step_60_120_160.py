# The recipe for VGG19, ShuffleNetV2 and MobileNet in the paper's Table 10.
_base_ = 'sgd.py'

optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[60, 120, 160], gamma=0.2)
