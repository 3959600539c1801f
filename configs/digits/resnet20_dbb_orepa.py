# Two kinds: DBB in the last stage, whose feature maps are small, and OREPA in all other convolutions.
_base_ = 'resnet20.py'

model = dict(
    backbone=dict(
        type='mmasr.ASRResNetCIFAR',
        convs=[dict(type='DBB', sites=r'layer3\.\d+\.conv\d'), dict(type='OREPA')],
    )
)
