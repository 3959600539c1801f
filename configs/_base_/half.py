# The control for ASR: at its sites, γ starts at 0.5, which is ASR's initial scale.
half = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer='_BatchNorm'),
    dict(type='mmasr.SitesConstant', val=0.5),
]
