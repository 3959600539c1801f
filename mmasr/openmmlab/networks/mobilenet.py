"""MobileNet, Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861."""

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import nn

from ...registry import MODELS

#: Channels and stride of every depthwise separable convolution (the paper's Table 1).
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


@MODELS.register_module()
class MobileNet(BaseModule):
    """The first MobileNet: a convolution, and 13 depthwise separable ones.

    Args:
        widen_factor (float): Multiplies all numbers of channels. Default: 1.
        stem_stride (int): Stride of the first convolution; 1 suits images of 32 × 32 pixels. Default: 2.
        init_cfg (dict, optional): As everywhere in OpenMMLab. Default: convolutions by Kaiming, normalizations 1.
    """

    def __init__(self, widen_factor: float = 1.0, stem_stride: int = 2, init_cfg: dict | list | None = None) -> None:
        super().__init__(
            init_cfg or [{'type': 'Kaiming', 'layer': 'Conv2d'}, {'type': 'Constant', 'val': 1, 'layer': 'BatchNorm2d'}]
        )
        norm = {'norm_cfg': {'type': 'BN'}}
        channels = round(32 * widen_factor)
        self.stem = ConvModule(3, channels, 3, stride=stem_stride, padding=1, **norm)
        self.blocks = nn.Sequential()
        for base_channels, stride in BLOCKS:
            inputs, channels = channels, round(base_channels * widen_factor)
            self.blocks.append(DepthwiseSeparableConvModule(inputs, channels, 3, stride=stride, padding=1, **norm))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Map images (N, 3, H, W) to the last feature map, the only item of a tuple."""
        return (self.blocks(self.stem(x)),)
