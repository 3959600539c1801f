_base_ = 'mmpretrain::resnet/resnet34_8xb32_in1k.py'

train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'))
