# A classifier of small images and what the recipes of the paper's Table 10 share; `epochs` are 164 for all of them.
_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mmasr'])
model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, loss=dict(type='CrossEntropyLoss')),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=164)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'))
