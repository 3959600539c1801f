_base_ = 'resnet50.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        type='mmasr.ASRResNet', norm_eval=False, zero_init_residual=False, asr=dict(attention=dict(type='SE'))
    )
)
