# The recipe for ResNet83 and ResNet164 in the paper's Table 10.
_base_ = 'sgd.py'

param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[81, 122], gamma=0.1)
