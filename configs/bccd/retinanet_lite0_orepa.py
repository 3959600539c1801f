_base_ = 'retinanet_lite0.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRBackbone',
        backbone=_base_.model.backbone,
        convs=dict(type='OREPA', init_identity=True),
    )
)
