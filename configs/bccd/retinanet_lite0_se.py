# Ordinary SE where EfficientNet has it: after the depthwise convolution of every block.
_base_ = 'retinanet_lite0.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.WithAttention',
        network=_base_.model.backbone,
        attention=dict(type='SE', init_identity=True),
    )
)
