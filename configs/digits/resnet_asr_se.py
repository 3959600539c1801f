# The same with ASR(SE), in the paper's form.
_base_ = 'resnet.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', asr=dict(attention=dict(type='SE'))))
