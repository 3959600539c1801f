# A small ConvNeXt on the digits, with the recipe of resnet20.py apart from the optimizer.
_base_ = [
    '../_base_/datasets/digits.py',
    '../_base_/networks/convnext_digits.py',
    '../_base_/schedules/cosine_30.py',
    '../_base_/default_runtime.py',
]

model = dict(data_preprocessor=dict(num_classes=10, mean=[128] * 3, std=[64] * 3, to_rgb=True))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.05))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=_base_.epochs, save_best=None))
randomness = dict(seed=0)
