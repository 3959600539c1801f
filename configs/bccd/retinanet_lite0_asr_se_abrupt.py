# A warning: without init_identity, each of 32 gates starts near 0.5, which ruins the pretrained network.
_base_ = 'retinanet_lite0_asr_se.py'

model = dict(backbone=dict(asr=dict(init_identity=False)))
