# ImageNet under data/imagenet as in imagenet.py, in the batches of OREPA's authors: 4 GPUs with 64 images each.
_base_ = 'imagenet.py'

train_dataloader = dict(batch_size=64)
