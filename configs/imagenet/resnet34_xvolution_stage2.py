_base_ = 'resnet34_xvolution.py'

model = dict(backbone=dict(convs=dict(sites=r'layer2\.\d+\.conv[12]')))
