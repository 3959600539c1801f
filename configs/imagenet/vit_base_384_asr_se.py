_base_ = 'vit_base_384.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRVisionTransformer', asr=dict(attention=dict(type='SE'))))
load_from = 'work_dirs/vit_base_asr_se/epoch_300.pth'
