_base_ = 'resnet50_xvolution.py'

model = dict(backbone=dict(convs=dict(sites=r'layer4\.\d+\.conv2')))
