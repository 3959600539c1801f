# ImageNet under data/imagenet, augmented as MMPretrain does, in the paper's batches on one GPU.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32.py'

train_dataloader = dict(batch_size=128)
