# CIFAR-100 in data/cifar100, with all settings of CIFAR-10. Like the authors' code, this includes the
# normalization.
_base_ = 'cifar10.py'

dataset_type = 'CIFAR100'
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(dataset=dict(type=dataset_type, data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root='data/cifar100'))
test_dataloader = val_dataloader
