_base_ = 'retinanet_lite0_asr_se.py'

model = dict(backbone=dict(asr=dict(attention=dict(type='IE'))))
