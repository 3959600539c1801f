# With ordinary, input-dependent SE, which tools/reparam.py removes after training (docs/remove-attention.md).
_base_ = 'fpn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        type='mmasr.ASRResNetV1c', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]
    )
)
