# CIFAR-10 as image files in data/cifar10-images, with a folder for every class.
_base_ = 'cifar10.py'

images = dict(_delete_=True, type='CustomDataset', data_root='data/cifar10-images')
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline]
train_dataloader = dict(dataset=dict(**images, data_prefix='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**images, data_prefix='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
data_preprocessor = dict(to_rgb=True)
