# Semantic segmentation of the shapes, plain: a small Semantic FPN of MMSegmentation, trained from scratch on
# the dataset that tools/shapes.py writes.
_base_ = ['mmseg::_base_/models/fpn_r50.py', 'mmseg::_base_/default_runtime.py']

channels = 48
norm_cfg = dict(type='BN')
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(depth=18, stem_channels=32, base_channels=32, norm_cfg=norm_cfg),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels),
    decode_head=dict(in_channels=[channels] * 4, channels=channels, num_classes=4, norm_cfg=norm_cfg),
)

metainfo = dict(
    classes=('ground', 'circle', 'square', 'triangle'),
    palette=[[0, 0, 0], [220, 60, 60], [60, 180, 75], [70, 110, 220]],
)
dataset = dict(type='BaseSegDataset', data_root='data/shapes', metainfo=metainfo, img_suffix='.png')
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
test_pipeline = [*load, dict(type='PackSegInputs')]
loader = dict(num_workers=1, persistent_workers=True)
train_dataloader = dict(
    **loader,
    batch_size=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='train', seg_map_path='maps/train'),
        pipeline=[
            *load,
            dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='val', seg_map_path='maps/val'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

epochs = 4
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=epochs),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
randomness = dict(seed=0)
