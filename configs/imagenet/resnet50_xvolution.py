# X-volution in stage 3, the best place in the paper. The paper gives no recipe, so this is MMPretrain's for
# the plain network.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', norm_eval=False, convs=dict(type='XVolution')))
