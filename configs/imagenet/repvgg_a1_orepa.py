_base_ = 'repvgg_a1_120e.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRRepVGG', convs=dict(type='OREPA')))
