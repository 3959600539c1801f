# The paper's recipe for ResNet34, 50 and 101 on ImageNet: MMPretrain's recipe with another batch size.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

auto_scale_lr = dict(base_batch_size=128)
