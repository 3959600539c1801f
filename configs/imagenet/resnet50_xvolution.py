# Stage 3, the paper's best. It gives no recipe; this is MMPretrain's for the plain network.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', norm_eval=False, convs=dict(type='XVolution')))
