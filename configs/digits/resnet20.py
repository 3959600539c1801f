# A plain ResNet-20 on the handwritten digits that tools/digits.py writes, 8 x 8 pixels.
_base_ = '../_base_/networks/classifier.py'

model = dict(
    data_preprocessor=dict(num_classes=10, mean=[128] * 3, std=[64] * 3, to_rgb=True),
    backbone=dict(type='mmasr.ResNetCIFAR', depth=20),
    head=dict(in_channels=64),
)

dataset = dict(
    type='CustomDataset', data_root='data/digits', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
)
train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, data_prefix='train'),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix='val'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

epochs = 30
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=epochs, save_best=None))
randomness = dict(seed=0)
