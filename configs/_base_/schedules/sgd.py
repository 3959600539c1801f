# Settings that the recipes of the paper's Table 10 share. The batch size is in the config of the dataset,
# because it differs for STL10.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=164)
val_cfg = dict()
test_cfg = dict()
