_base_ = [
    '../_base_/datasets/cifar10_images.py',
    '../_base_/networks/resnet20.py',
    '../_base_/schedules/step_30_45.py',
    '../_base_/default_runtime.py',
]

# Only the last checkpoint is kept, because the best one would be chosen on the test set.
default_hooks = dict(checkpoint=dict(save_best=None))
custom_hooks = [dict(type='mmasr.ChannelsLastHook')]
