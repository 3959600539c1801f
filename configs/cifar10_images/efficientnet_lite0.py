# EfficientNet-Lite0 with ImageNet weights, fine-tuned on 5,000 images. docs/experiments.md says where to get
# the data and the weights.
_base_ = [
    '../_base_/datasets/cifar10_images_64.py',
    '../_base_/networks/classifier.py',
    '../_base_/schedules/adamw_30.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet_lite0.pth', prefix='backbone.'),
    ),
    head=dict(in_channels=1280),
)
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_dataloader = dict(batch_size=64, dataset=dict(data_prefix='train_5k'))
epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = dict(T_max=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs, save_best=None))
custom_hooks = [dict(type='mmasr.ChannelsLastHook')]
