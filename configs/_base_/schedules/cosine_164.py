# The recipe for ResNet-ACNet in the paper's Table 10.
_base_ = 'sgd.py'

param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=164)
