# The control of a comparison with ASR: γ starts at ASR's initial scale of one half where ASR would be.
half = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer='_BatchNorm'),
    dict(type='mmasr.SitesConstant', val=0.5),
]
