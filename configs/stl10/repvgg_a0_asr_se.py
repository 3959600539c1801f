_base_ = 'repvgg_a0.py'

model = dict(backbone=dict(type='mmasr.ASRRepVGG', asr=dict(attention=dict(type='SE'))))
