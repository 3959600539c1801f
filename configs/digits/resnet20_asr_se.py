# The same with ASR(SE), in the paper's form.
_base_ = 'resnet20.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='SE'))))
