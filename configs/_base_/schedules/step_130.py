# The recipe for RepVGG A0 and B3 in the paper's Table 10.
_base_ = 'sgd.py'

param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[130], gamma=0.1)
