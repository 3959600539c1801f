# What the recipes of the paper's Table 10 share. The batch is in the data set, since STL10 has another one.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=164)
val_cfg = dict()
test_cfg = dict()
