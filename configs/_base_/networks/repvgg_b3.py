# RepVGG-B3 with stride 1 in its first stage, so that 32 pixels are not reduced to one.
_base_ = 'classifier.py'

model = dict(
    backbone=dict(type='RepVGG', arch='B3', strides=(1, 2, 2, 2), out_indices=(3,)),
    head=dict(in_channels=2560),
)
