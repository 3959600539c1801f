"""ShuffleNetV2 for images of 32 × 32 pixels."""

from mmpretrain.models.backbones import ShuffleNetV2
from torch import nn

from ...registry import MODELS


@MODELS.register_module()
class ShuffleNetV2CIFAR(ShuffleNetV2):
    """mmpretrain's ShuffleNetV2 that keeps the resolution up to its first stage: no stride in the stem, no max pooling.
    Arguments and state dict are mmpretrain's."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.conv.stride = (1, 1)
        self.maxpool = nn.Identity()
