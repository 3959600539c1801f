# The embedded classification experiment, with the plain network.
_base_ = [
    '../_base_/datasets/digits.py',
    '../_base_/networks/resnet20.py',
    '../_base_/schedules/cosine_30.py',
    '../_base_/default_runtime.py',
]

# These statistics describe the dataset, but they are part of the model, so the config of the dataset cannot
# set them.
model = dict(data_preprocessor=dict(num_classes=10, mean=[128] * 3, std=[64] * 3, to_rgb=True))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=_base_.epochs, save_best=None))
randomness = dict(seed=0)
