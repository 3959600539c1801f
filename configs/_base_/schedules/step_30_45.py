# The recipe for ResNet83 and ResNet164 in the paper's Table 10, shortened to 60 epochs.
_base_ = 'sgd.py'

epochs = 60
train_cfg = dict(max_epochs=epochs, val_interval=10)
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 45], gamma=0.1)
