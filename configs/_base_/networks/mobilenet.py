# MobileNet without the stride of its stem, so that 32 pixels are not shrunk to one.
_base_ = 'classifier.py'

model = dict(backbone=dict(type='mmasr.MobileNet', stem_stride=1), head=dict(in_channels=1024))
