# The backbone is ASRResNetCIFAR without ASR, because the plain ResNetCIFAR rejects plugins in basic blocks.
_base_ = 'resnet20.py'

model = dict(
    backbone=dict(
        type='mmasr.ASRResNetCIFAR', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]
    )
)
