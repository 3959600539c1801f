# The embedded default: ASR(SE) in the paper's form, trained from scratch.
_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='SE'))))
