# CIFAR-10 as image files, enlarged to 64 pixels for networks that reduce their input by a factor of 32.
_base_ = 'cifar10_images.py'

enlarge = dict(type='Resize', scale=64)
train_pipeline = [*_base_.train_pipeline[:-1], enlarge, _base_.train_pipeline[-1]]
test_pipeline = [*_base_.test_pipeline[:-1], enlarge, _base_.test_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
