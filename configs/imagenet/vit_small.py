# The settings that the paper's Table 11 does not give (augmentation, warm-up) are those of DeiT in
# MMPretrain.
_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'))
