_base_ = 'mobilenet.py'

model = dict(backbone=dict(type='mmasr.ASRMobileNet', asr=dict(attention=dict(type='SE'))))
