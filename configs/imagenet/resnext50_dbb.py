_base_ = 'resnext50_orepa.py'

model = dict(backbone=dict(convs=dict(type='DBB')))
