# STL10 in data/stl10, in its published binary format; everything else is like CIFAR-10.
_base_ = 'cifar10.py'

dataset_type = 'mmasr.STL10'
train_pipeline = [
    dict(type='RandomCrop', crop_size=96, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root='data/stl10',
        ann_file='train_y.bin',
        data_prefix=dict(images='train_X.bin'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root='data/stl10',
        ann_file='test_y.bin',
        data_prefix=dict(images='test_X.bin'),
        pipeline=[dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=16)
