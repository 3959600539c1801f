# mmasr's backbones are based on MMDetection's, whose ResNeXt calls `width_per_group` of MMPretrain
# `base_width`.
_base_ = 'resnext50_120e.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRResNeXt',
        depth=50,
        groups=32,
        base_width=4,
        out_indices=(3,),
        norm_eval=False,
        zero_init_residual=False,
        convs=dict(type='OREPA'),
    )
)
