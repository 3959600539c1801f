_base_ = 'vgg19.py'  # the same recipe

model = dict(backbone=dict(_delete_=True, type='mmasr.MobileNet', stem_stride=1), head=dict(in_channels=1024))
