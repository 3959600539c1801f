# WideResNet-18 (2x): ResNet-18 with 128 channels in the place of 64.
_base_ = 'wideresnet18_w96_120e.py'

model = dict(backbone=dict(base_channels=128, stem_channels=128), head=dict(in_channels=1024))
