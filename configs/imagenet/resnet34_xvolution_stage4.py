_base_ = 'resnet34_xvolution.py'

model = dict(backbone=dict(convs=dict(sites=r'layer4\.\d+\.conv[12]')))
