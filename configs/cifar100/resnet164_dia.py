# All blocks of a stage share one LSTM cell, whose state the backbone passes from block to block.
_base_ = 'resnet164.py'

model = dict(
    backbone=dict(
        type='mmasr.ASRResNetCIFAR', plugins=[dict(cfg=dict(type='mmasr.DIA'), position='after_conv3')]
    )
)
