# The control: no ASR, but γ starts at its initial scale of one half where ASR would be.
_base_ = 'resnet20_noise.py'

init_cfg = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer='_BatchNorm'),
    dict(type='mmasr.SitesConstant', val=0.5),
]
model = dict(backbone=dict(init_cfg=init_cfg))
