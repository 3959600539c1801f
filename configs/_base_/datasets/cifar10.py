# CIFAR-10 in data/cifar10. MMPretrain normalizes, crops and flips it like the authors' code.
_base_ = 'mmpretrain::_base_/datasets/cifar10_bs16.py'

train_dataloader = dict(batch_size=128, persistent_workers=True, dataset=dict(download=False))
val_dataloader = dict(batch_size=100, persistent_workers=True, dataset=dict(download=False))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=128)
