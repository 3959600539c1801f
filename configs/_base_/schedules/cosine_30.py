# SGD of the paper's Table 10 for the embedded digits, with few epochs, and validation only after the last
# one.
_base_ = 'sgd.py'

epochs = 30
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True)
