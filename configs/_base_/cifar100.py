# CIFAR-100 under data/cifar100, normalized as in the authors' code, which crops and flips as MMPretrain does.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

data_preprocessor = dict(mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255])
train_dataloader = dict(batch_size=128, persistent_workers=True, dataset=dict(download=False))
val_dataloader = dict(batch_size=100, persistent_workers=True, dataset=dict(download=False))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=128)
