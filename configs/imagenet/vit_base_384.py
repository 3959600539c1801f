# Fine-tunes the network that vit_base.py trains at 224 pixels.
_base_ = 'mmpretrain::deit/deit-base_16xb32_in1k-384px.py'

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', by_epoch=True, T_max=30)
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'))
load_from = 'work_dirs/vit_base/epoch_300.pth'
