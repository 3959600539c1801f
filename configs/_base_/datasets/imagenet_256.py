# ImageNet like in imagenet.py, with OREPA's batch size: 64 images on each of 4 GPUs.
_base_ = 'imagenet.py'

train_dataloader = dict(batch_size=64)
