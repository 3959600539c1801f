_base_ = 'resnet50_xvolution.py'

model = dict(backbone=dict(convs=dict(sites=r'layer2\.\d+\.conv2')))
