# MMDetection trains YOLOX from scratch. init_identity is for starting from its trained weights with
# `load_from`.
_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmasr.ASRBackbone',
        backbone=_base_.model.backbone,
        asr=dict(attention=dict(type='SE'), init_identity=True),
    )
)
