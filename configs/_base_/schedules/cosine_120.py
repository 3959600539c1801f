# OREPA's recipe for ImageNet, with a total batch size of 256.
_base_ = 'sgd.py'

epochs, warmup = 120, 5
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0))
train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=warmup,
        end=epochs,
        T_max=epochs - warmup,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=256)
