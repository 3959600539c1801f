_base_ = 'retinanet_lite0.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRBackbone',
        backbone=_base_.model.backbone,
        convs=dict(type='DBB', init_identity=True),
    )
)
