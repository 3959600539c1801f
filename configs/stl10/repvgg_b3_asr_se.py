_base_ = 'repvgg_b3.py'

model = dict(backbone=dict(type='mmasr.ASRRepVGG', asr=dict(attention=dict(type='SE'))))
