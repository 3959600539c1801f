_base_ = 'resnet34.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        type='mmasr.ASRResNet',
        norm_eval=False,
        zero_init_residual=False,
        plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')],
    )
)
