_base_ = 'shufflenetv2.py'

model = dict(backbone=dict(type='mmasr.ASRShuffleNetV2CIFAR', asr=dict(attention=dict(type='SE'))))
