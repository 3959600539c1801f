# CIFAR-100 under data/cifar100, in the authors' code as in ours with all that CIFAR-10 has, its normalization too.
_base_ = 'cifar10.py'

dataset_type = 'CIFAR100'
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(dataset=dict(type=dataset_type, data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root='data/cifar100'))
test_dataloader = val_dataloader
