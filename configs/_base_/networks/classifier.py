# Settings that the networks for small images share. Most of their backbones are in mmasr, and so is the
# dataset STL10.
custom_imports = dict(imports=['mmasr'])
model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, loss=dict(type='CrossEntropyLoss')),
)
