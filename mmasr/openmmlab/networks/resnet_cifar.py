"""ResNets for images of 32 × 32 pixels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from ...errors import InputError
from ...registry import MODELS


@MODELS.register_module()
class ResNetCIFAR(ResNet):
    """ResNet with a stem of one 3 × 3 convolution and three stages of n blocks each.

    The stages have 16, 32 and 64 base channels.

    Args:
        depth (int): Number of layers: 20, 56 or 110 (6n + 2) with basic blocks; 83 or 164 (9n + 2) with
            bottlenecks.
        **kwargs: Other arguments of mmdet's ResNet. ``plugins`` work in bottlenecks only; in
            ``mmasr.ASRResNetCIFAR`` they work in basic blocks as well.

    Raises:
        InputError: If there is no such depth.
    """

    arch_settings = {  # noqa: RUF012  as in the base class
        20: (BasicBlock, (3, 3, 3)),
        56: (BasicBlock, (9, 9, 9)),
        110: (BasicBlock, (18, 18, 18)),
        83: (Bottleneck, (9, 9, 9)),
        164: (Bottleneck, (18, 18, 18)),
    }

    def __init__(self, depth: int, **kwargs) -> None:
        if depth not in self.arch_settings:
            known = ', '.join(map(str, self.arch_settings))
            raise InputError(f'ResNetCIFAR has no depth {depth!r}; the depths are {known}')
        stages = {'num_stages': 3, 'strides': (1, 2, 2), 'dilations': (1, 1, 1), 'out_indices': (2,)}
        training = {'frozen_stages': -1, 'norm_eval': False, 'zero_init_residual': False}
        super().__init__(depth, **{'base_channels': 16, **stages, **training, **kwargs})
        self.maxpool = nn.Identity()

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.conv1 = build_conv_layer(self.conv_cfg, in_channels, stem_channels, 3, padding=1, bias=False)
