# With ordinary, input-dependent SE, which tools/reparam.py removes after training (docs/remove-attention.md).
# The backbone is MMDetection's ResNet, because MMSegmentation's takes no plugins in basic blocks.
_base_ = 'fpn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRResNet',
        depth=18,
        deep_stem=True,
        stem_channels=32,
        base_channels=32,
        norm_eval=False,
        plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')],
    )
)
