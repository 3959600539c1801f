# Table 10's SGD for the embedded digits: few epochs, validated after the last one only.
_base_ = 'sgd.py'

epochs = 30
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True)
