_base_ = 'retinanet_lite0_orepa.py'

model = dict(backbone=dict(convs=dict(type='DBB')))
