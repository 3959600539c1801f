# ImageNet in data/imagenet, with MMPretrain's augmentation and the paper's batch size on one GPU.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32.py'

train_dataloader = dict(batch_size=128)
