# MMPretrain's runtime settings. They keep the best checkpoint and the last one.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'))
