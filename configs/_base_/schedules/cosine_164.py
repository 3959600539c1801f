# The paper's Table 10 for ResNet-ACNet.
_base_ = 'sgd.py'

param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=164)
