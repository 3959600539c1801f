# A small RetinaNet on an EfficientNet-Lite0 with ImageNet weights, for microscope photographs of blood cells.
# docs/experiments.md says where to get the data and the weights.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['mmasr'])

channels = 64
num_classes = 3
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='mmpretrain.TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        out_indices=(2, 3, 4),
        init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet_lite0.pth', prefix='backbone.'),
    ),
    neck=dict(
        type='FPN',
        in_channels=[40, 112, 320],
        out_channels=channels,
        num_outs=4,
        add_extra_convs='on_output',
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        type='RetinaSepBNHead',
        num_classes=num_classes,
        num_ins=4,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=2,
            ratios=[1.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_decoded_bbox=True,
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
        ),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
dataset = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo, data_prefix=dict(img='images/'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
loader = dict(num_workers=1, persistent_workers=True)
train_dataloader = dict(
    **loader,
    batch_size=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='train.json',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            *load,
            dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='Resize', scale=(320, 240), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
test_dataloader = dict(
    **loader,
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='test.json',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(320, 240), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'test.json', metric='bbox')
val_evaluator = test_evaluator

epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=25),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(interval=epochs),
    visualization=dict(type='DetVisualizationHook'),
)
custom_hooks = [dict(type='mmasr.ChannelsLastHook')]
randomness = dict(seed=0)
