# One LSTM cell for all blocks of a stage, whose state our backbone passes on.
_base_ = 'resnet164.py'

model = dict(backbone=dict(type='mmasr.ASRResNetCIFAR', plugins=[dict(cfg=dict(type='mmasr.DIA'), position='after_conv3')]))
