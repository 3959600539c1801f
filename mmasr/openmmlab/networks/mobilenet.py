"""MobileNet, the first version.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861.
"""

import math

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import nn

from ...errors import InputError
from ...registry import MODELS

#: Output channels and stride of each depthwise separable convolution (the paper's Table 1).
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


@MODELS.register_module()
class MobileNet(BaseModule):
    """MobileNet (version 1): one convolution, then 13 depthwise separable convolutions.

    Args:
        widen_factor (float): Factor for all numbers of channels. Default: 1.
        stem_stride (int): Stride of the first convolution. Use 1 for images of 32 × 32 pixels. Default: 2.
        init_cfg (dict | list[dict], optional): Initialization config of mmengine's ``BaseModule``. Default:
            Kaiming for convolutions, 1 for the weights of normalizations.

    Raises:
        InputError: If ``widen_factor`` is not a positive number.
    """

    def __init__(
        self, widen_factor: float = 1.0, stem_stride: int = 2, init_cfg: dict | list | None = None
    ) -> None:
        if not isinstance(widen_factor, int | float) or not 0 < widen_factor < math.inf:
            raise InputError(f'MobileNet: widen_factor must be a positive number, not {widen_factor!r}')
        super().__init__(
            init_cfg
            or [
                {'type': 'Kaiming', 'layer': 'Conv2d'},
                {'type': 'Constant', 'val': 1, 'layer': 'BatchNorm2d'},
            ]
        )
        norm = {'norm_cfg': {'type': 'BN'}}
        channels = round(32 * widen_factor)
        self.stem = ConvModule(3, channels, 3, stride=stem_stride, padding=1, **norm)
        self.blocks = nn.Sequential()
        for base_channels, stride in BLOCKS:
            inputs, channels = channels, round(base_channels * widen_factor)
            self.blocks.append(
                DepthwiseSeparableConvModule(inputs, channels, 3, stride=stride, padding=1, **norm)
            )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Map images (N, 3, H, W) to a tuple with one item, the last feature map."""
        return (self.blocks(self.stem(x)),)
