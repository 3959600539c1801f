# The same with ASR(IE), in the paper's form.
_base_ = 'resnet20.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', asr=dict(attention=dict(type='IE'))))
