_base_ = 'resnet50_asr_se_se.py'

model = dict(
    backbone=dict(depth=34, plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]), head=dict(in_channels=512)
)
