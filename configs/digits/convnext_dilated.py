_base_ = 'convnext.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRBackbone',
        backbone=_base_.model.backbone,
        convs=dict(type='DilatedReparam'),
    )
)
