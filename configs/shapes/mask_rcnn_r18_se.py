# Ordinary, input-dependent SE on the embedded default, to compare ASR with and to fold after training (docs/stripes.md).
# ASRResNet without ASR, since the stock ResNet takes no plugins in basic blocks.
_base_ = 'mask_rcnn_r18.py'

custom_imports = dict(imports=['mmasr'])
model = dict(backbone=dict(type='mmasr.ASRResNet', plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]))
