# What the networks for small images share. Their backbones are mmasr's for the most part, and so is STL10.
custom_imports = dict(imports=['mmasr'])
model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, loss=dict(type='CrossEntropyLoss')),
)
