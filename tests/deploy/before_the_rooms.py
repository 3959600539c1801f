"""What a checkpoint held that was written before the package had rooms: its config's text and the names of its weights.

configs/shapes/mask_rcnn_r18_asr_se.py, one epoch of training.
"""

NAMES = """
backbone.conv1.weight
backbone.bn1.weight
backbone.bn1.bias
backbone.bn1.running_mean
backbone.bn1.running_var
backbone.bn1.num_batches_tracked
backbone.layer1.0.conv1.weight
backbone.layer1.0.bn1.weight
backbone.layer1.0.bn1.bias
backbone.layer1.0.bn1.running_mean
backbone.layer1.0.bn1.running_var
backbone.layer1.0.bn1.num_batches_tracked
backbone.layer1.0.conv2.weight
backbone.layer1.0.bn2.weight
backbone.layer1.0.bn2.bias
backbone.layer1.0.bn2.running_mean
backbone.layer1.0.bn2.running_var
backbone.layer1.0.bn2.num_batches_tracked
backbone.layer1.0.bn2.asr.psi
backbone.layer1.0.bn2.asr.initial
backbone.layer1.0.bn2.asr.attention.0.fc1.weight
backbone.layer1.0.bn2.asr.attention.0.fc1.bias
backbone.layer1.0.bn2.asr.attention.0.fc2.weight
backbone.layer1.0.bn2.asr.attention.0.fc2.bias
backbone.layer1.1.conv1.weight
backbone.layer1.1.bn1.weight
backbone.layer1.1.bn1.bias
backbone.layer1.1.bn1.running_mean
backbone.layer1.1.bn1.running_var
backbone.layer1.1.bn1.num_batches_tracked
backbone.layer1.1.conv2.weight
backbone.layer1.1.bn2.weight
backbone.layer1.1.bn2.bias
backbone.layer1.1.bn2.running_mean
backbone.layer1.1.bn2.running_var
backbone.layer1.1.bn2.num_batches_tracked
backbone.layer1.1.bn2.asr.psi
backbone.layer1.1.bn2.asr.initial
backbone.layer1.1.bn2.asr.attention.0.fc1.weight
backbone.layer1.1.bn2.asr.attention.0.fc1.bias
backbone.layer1.1.bn2.asr.attention.0.fc2.weight
backbone.layer1.1.bn2.asr.attention.0.fc2.bias
backbone.layer2.0.conv1.weight
backbone.layer2.0.bn1.weight
backbone.layer2.0.bn1.bias
backbone.layer2.0.bn1.running_mean
backbone.layer2.0.bn1.running_var
backbone.layer2.0.bn1.num_batches_tracked
backbone.layer2.0.conv2.weight
backbone.layer2.0.bn2.weight
backbone.layer2.0.bn2.bias
backbone.layer2.0.bn2.running_mean
backbone.layer2.0.bn2.running_var
backbone.layer2.0.bn2.num_batches_tracked
backbone.layer2.0.bn2.asr.psi
backbone.layer2.0.bn2.asr.initial
backbone.layer2.0.bn2.asr.attention.0.fc1.weight
backbone.layer2.0.bn2.asr.attention.0.fc1.bias
backbone.layer2.0.bn2.asr.attention.0.fc2.weight
backbone.layer2.0.bn2.asr.attention.0.fc2.bias
backbone.layer2.0.downsample.0.weight
backbone.layer2.0.downsample.1.weight
backbone.layer2.0.downsample.1.bias
backbone.layer2.0.downsample.1.running_mean
backbone.layer2.0.downsample.1.running_var
backbone.layer2.0.downsample.1.num_batches_tracked
backbone.layer2.1.conv1.weight
backbone.layer2.1.bn1.weight
backbone.layer2.1.bn1.bias
backbone.layer2.1.bn1.running_mean
backbone.layer2.1.bn1.running_var
backbone.layer2.1.bn1.num_batches_tracked
backbone.layer2.1.conv2.weight
backbone.layer2.1.bn2.weight
backbone.layer2.1.bn2.bias
backbone.layer2.1.bn2.running_mean
backbone.layer2.1.bn2.running_var
backbone.layer2.1.bn2.num_batches_tracked
backbone.layer2.1.bn2.asr.psi
backbone.layer2.1.bn2.asr.initial
backbone.layer2.1.bn2.asr.attention.0.fc1.weight
backbone.layer2.1.bn2.asr.attention.0.fc1.bias
backbone.layer2.1.bn2.asr.attention.0.fc2.weight
backbone.layer2.1.bn2.asr.attention.0.fc2.bias
backbone.layer3.0.conv1.weight
backbone.layer3.0.bn1.weight
backbone.layer3.0.bn1.bias
backbone.layer3.0.bn1.running_mean
backbone.layer3.0.bn1.running_var
backbone.layer3.0.bn1.num_batches_tracked
backbone.layer3.0.conv2.weight
backbone.layer3.0.bn2.weight
backbone.layer3.0.bn2.bias
backbone.layer3.0.bn2.running_mean
backbone.layer3.0.bn2.running_var
backbone.layer3.0.bn2.num_batches_tracked
backbone.layer3.0.bn2.asr.psi
backbone.layer3.0.bn2.asr.initial
backbone.layer3.0.bn2.asr.attention.0.fc1.weight
backbone.layer3.0.bn2.asr.attention.0.fc1.bias
backbone.layer3.0.bn2.asr.attention.0.fc2.weight
backbone.layer3.0.bn2.asr.attention.0.fc2.bias
backbone.layer3.0.downsample.0.weight
backbone.layer3.0.downsample.1.weight
backbone.layer3.0.downsample.1.bias
backbone.layer3.0.downsample.1.running_mean
backbone.layer3.0.downsample.1.running_var
backbone.layer3.0.downsample.1.num_batches_tracked
backbone.layer3.1.conv1.weight
backbone.layer3.1.bn1.weight
backbone.layer3.1.bn1.bias
backbone.layer3.1.bn1.running_mean
backbone.layer3.1.bn1.running_var
backbone.layer3.1.bn1.num_batches_tracked
backbone.layer3.1.conv2.weight
backbone.layer3.1.bn2.weight
backbone.layer3.1.bn2.bias
backbone.layer3.1.bn2.running_mean
backbone.layer3.1.bn2.running_var
backbone.layer3.1.bn2.num_batches_tracked
backbone.layer3.1.bn2.asr.psi
backbone.layer3.1.bn2.asr.initial
backbone.layer3.1.bn2.asr.attention.0.fc1.weight
backbone.layer3.1.bn2.asr.attention.0.fc1.bias
backbone.layer3.1.bn2.asr.attention.0.fc2.weight
backbone.layer3.1.bn2.asr.attention.0.fc2.bias
backbone.layer4.0.conv1.weight
backbone.layer4.0.bn1.weight
backbone.layer4.0.bn1.bias
backbone.layer4.0.bn1.running_mean
backbone.layer4.0.bn1.running_var
backbone.layer4.0.bn1.num_batches_tracked
backbone.layer4.0.conv2.weight
backbone.layer4.0.bn2.weight
backbone.layer4.0.bn2.bias
backbone.layer4.0.bn2.running_mean
backbone.layer4.0.bn2.running_var
backbone.layer4.0.bn2.num_batches_tracked
backbone.layer4.0.bn2.asr.psi
backbone.layer4.0.bn2.asr.initial
backbone.layer4.0.bn2.asr.attention.0.fc1.weight
backbone.layer4.0.bn2.asr.attention.0.fc1.bias
backbone.layer4.0.bn2.asr.attention.0.fc2.weight
backbone.layer4.0.bn2.asr.attention.0.fc2.bias
backbone.layer4.0.downsample.0.weight
backbone.layer4.0.downsample.1.weight
backbone.layer4.0.downsample.1.bias
backbone.layer4.0.downsample.1.running_mean
backbone.layer4.0.downsample.1.running_var
backbone.layer4.0.downsample.1.num_batches_tracked
backbone.layer4.1.conv1.weight
backbone.layer4.1.bn1.weight
backbone.layer4.1.bn1.bias
backbone.layer4.1.bn1.running_mean
backbone.layer4.1.bn1.running_var
backbone.layer4.1.bn1.num_batches_tracked
backbone.layer4.1.conv2.weight
backbone.layer4.1.bn2.weight
backbone.layer4.1.bn2.bias
backbone.layer4.1.bn2.running_mean
backbone.layer4.1.bn2.running_var
backbone.layer4.1.bn2.num_batches_tracked
backbone.layer4.1.bn2.asr.psi
backbone.layer4.1.bn2.asr.initial
backbone.layer4.1.bn2.asr.attention.0.fc1.weight
backbone.layer4.1.bn2.asr.attention.0.fc1.bias
backbone.layer4.1.bn2.asr.attention.0.fc2.weight
backbone.layer4.1.bn2.asr.attention.0.fc2.bias
neck.lateral_convs.0.conv.weight
neck.lateral_convs.0.conv.bias
neck.lateral_convs.1.conv.weight
neck.lateral_convs.1.conv.bias
neck.lateral_convs.2.conv.weight
neck.lateral_convs.2.conv.bias
neck.lateral_convs.3.conv.weight
neck.lateral_convs.3.conv.bias
neck.fpn_convs.0.conv.weight
neck.fpn_convs.0.conv.bias
neck.fpn_convs.1.conv.weight
neck.fpn_convs.1.conv.bias
neck.fpn_convs.2.conv.weight
neck.fpn_convs.2.conv.bias
neck.fpn_convs.3.conv.weight
neck.fpn_convs.3.conv.bias
rpn_head.rpn_conv.weight
rpn_head.rpn_conv.bias
rpn_head.rpn_cls.weight
rpn_head.rpn_cls.bias
rpn_head.rpn_reg.weight
rpn_head.rpn_reg.bias
roi_head.bbox_head.fc_cls.weight
roi_head.bbox_head.fc_cls.bias
roi_head.bbox_head.fc_reg.weight
roi_head.bbox_head.fc_reg.bias
roi_head.bbox_head.shared_fcs.0.weight
roi_head.bbox_head.shared_fcs.0.bias
roi_head.bbox_head.shared_fcs.1.weight
roi_head.bbox_head.shared_fcs.1.bias
roi_head.mask_head.convs.0.conv.weight
roi_head.mask_head.convs.0.conv.bias
roi_head.mask_head.convs.1.conv.weight
roi_head.mask_head.convs.1.conv.bias
roi_head.mask_head.upsample.weight
roi_head.mask_head.upsample.bias
roi_head.mask_head.conv_logits.weight
roi_head.mask_head.conv_logits.bias
"""

CONFIG = """\
channels = 64
custom_imports = dict(imports=[
    'mmasr',
])
data_root = 'data/shapes/'
dataset = dict(
    data_root='data/shapes/',
    metainfo=dict(classes=(
        'circle',
        'square',
        'triangle',
    )),
    type='CocoDataset')
default_hooks = dict(
    checkpoint=dict(_scope_='mmdet', interval=1, type='CheckpointHook'),
    ema=dict(type='EMAHook'),
    logger=dict(_scope_='mmdet', interval=10, type='LoggerHook'),
    param_scheduler=dict(_scope_='mmdet', type='ParamSchedulerHook'),
    sampler_seed=dict(_scope_='mmdet', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmdet', type='IterTimerHook'),
    visualization=dict(_scope_='mmdet', type='DetVisualizationHook'))
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
epochs = 8
launcher = 'none'
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
load_from = None
loader = dict(num_workers=1, persistent_workers=True)
log_level = 'INFO'
log_processor = dict(
    _scope_='mmdet', by_epoch=True, type='LogProcessor', window_size=50)
metainfo = dict(classes=(
    'circle',
    'square',
    'triangle',
))
model = dict(
    _scope_='mmdet',
    backbone=dict(
        asr=dict(attention=dict(type='SE')),
        depth=18,
        frozen_stages=-1,
        init_cfg=None,
        norm_cfg=dict(requires_grad=True, type='BN'),
        norm_eval=False,
        num_stages=4,
        out_indices=(
            0,
            1,
            2,
            3,
        ),
        style='pytorch',
        type='mmasr.ASRResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_mask=True,
        pad_size_divisor=32,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='DetDataPreprocessor'),
    neck=dict(
        in_channels=[
            64,
            128,
            256,
            512,
        ],
        num_outs=5,
        out_channels=64,
        type='FPN'),
    roi_head=dict(
        bbox_head=dict(
            bbox_coder=dict(
                target_means=[
                    0.0,
                    0.0,
                    0.0,
                    0.0,
                ],
                target_stds=[
                    0.1,
                    0.1,
                    0.2,
                    0.2,
                ],
                type='DeltaXYWHBBoxCoder'),
            fc_out_channels=256,
            in_channels=64,
            loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
            loss_cls=dict(
                loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
            num_classes=3,
            reg_class_agnostic=False,
            roi_feat_size=7,
            type='Shared2FCBBoxHead'),
        bbox_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=64,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        mask_head=dict(
            conv_out_channels=64,
            in_channels=64,
            loss_mask=dict(
                loss_weight=1.0, type='CrossEntropyLoss', use_mask=True),
            num_classes=3,
            num_convs=2,
            type='FCNMaskHead'),
        mask_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=64,
            roi_layer=dict(output_size=14, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        type='StandardRoIHead'),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales=[
                4,
            ],
            strides=[
                4,
                8,
                16,
                32,
                64,
            ],
            type='AnchorGenerator'),
        bbox_coder=dict(
            target_means=[
                0.0,
                0.0,
                0.0,
                0.0,
            ],
            target_stds=[
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            type='DeltaXYWHBBoxCoder'),
        feat_channels=64,
        in_channels=64,
        loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
        loss_cls=dict(
            loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=True),
        type='RPNHead'),
    test_cfg=dict(
        rcnn=dict(
            mask_thr_binary=0.5,
            max_per_img=20,
            nms=dict(iou_threshold=0.5, type='nms'),
            score_thr=0.05),
        rpn=dict(
            max_per_img=100,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=300)),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.5,
                neg_iou_thr=0.5,
                pos_iou_thr=0.5,
                type='MaxIoUAssigner'),
            debug=False,
            mask_size=28,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=True,
                neg_pos_ub=-1,
                num=64,
                pos_fraction=0.25,
                type='RandomSampler')),
        rpn=dict(
            allowed_border=-1,
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.3,
                neg_iou_thr=0.3,
                pos_iou_thr=0.7,
                type='MaxIoUAssigner'),
            debug=False,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=False,
                neg_pos_ub=-1,
                num=256,
                pos_fraction=0.5,
                type='RandomSampler')),
        rpn_proposal=dict(
            max_per_img=200,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=500)),
    type='MaskRCNN')
num_classes = 3
optim_wrapper = dict(
    clip_grad=dict(max_norm=10),
    optimizer=dict(lr=0.001, type='AdamW', weight_decay=0.05),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=20, start_factor=0.01, type='LinearLR'),
    dict(
        T_max=8,
        by_epoch=True,
        convert_to_iter_based=True,
        type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        data_root='data/shapes/',
        metainfo=dict(classes=(
            'circle',
            'square',
            'triangle',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(scale=(
                128,
                128,
            ), type='Resize'),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    ann_file='data/shapes/val.json',
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric')
train_cfg = dict(max_epochs=1, type='EpochBasedTrainLoop', val_interval=1)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        data_root='data/shapes/',
        filter_cfg=dict(filter_empty_gt=True),
        metainfo=dict(classes=(
            'circle',
            'square',
            'triangle',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='DefaultSampler'))
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        data_root='data/shapes/',
        metainfo=dict(classes=(
            'circle',
            'square',
            'triangle',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(scale=(
                128,
                128,
            ), type='Resize'),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    ann_file='data/shapes/val.json',
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric')
vis_backends = [
    dict(_scope_='mmdet', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmdet',
    name='visualizer',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
work_dir = 'work'
"""
