_base_ = 'retinanet_lite0.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRBackbone',
        backbone=_base_.model.backbone,
        asr=dict(attention=dict(type='SE'), init_identity=True),
    )
)
