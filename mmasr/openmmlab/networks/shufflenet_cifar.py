"""ShuffleNetV2 for images of 32 × 32 pixels."""

from mmpretrain.models.backbones import ShuffleNetV2
from torch import nn

from ...registry import MODELS


@MODELS.register_module()
class ShuffleNetV2CIFAR(ShuffleNetV2):
    """ShuffleNetV2 of mmpretrain without stride in the stem and without max pooling.

    It keeps the full resolution up to its first stage. Its arguments and its state dict are those of
    mmpretrain's ShuffleNetV2.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.conv.stride = (1, 1)
        self.maxpool = nn.Identity()
