# A small ConvNeXt for images of a few pixels: three stages of depthwise 7 x 7 convolutions, and a stem that
# keeps the resolution. It has no layer scale, which starts the residual branches near zero and needs a long
# training.
_base_ = 'classifier.py'

model = dict(
    backbone=dict(
        type='ConvNeXt',
        arch=dict(depths=[1, 1, 1], channels=[16, 32, 64]),
        out_indices=(2,),
        stem_patch_size=1,
        layer_scale_init_value=0.0,
    ),
    neck=None,
    head=dict(in_channels=64),
)
