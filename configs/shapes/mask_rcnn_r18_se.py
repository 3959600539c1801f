# The embedded default with ordinary, input-dependent SE: a baseline for ASR, and for folding after training
# (docs/stripes.md). The backbone is ASRResNet without ASR, because the stock ResNet rejects plugins in basic
# blocks.
_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    backbone=dict(type='mmasr.ASRResNet', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')])
)
