# MobileNet with stride 1 in its stem, so that 32 pixels are not reduced to one.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.MobileNet', stem_stride=1), head=dict(in_channels=1024))
