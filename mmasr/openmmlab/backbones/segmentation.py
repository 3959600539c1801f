"""MMSegmentation's ResNetV1c with ASR at the last normalization of every residual block (the paper's Fig. 7)."""

from mmseg.models.backbones import ResNetV1c

from ...registry import MODELS
from .base import WithASR


@MODELS.register_module()
class ASRResNetV1c(WithASR, ResNetV1c):
    """mmseg's ResNetV1c with ASR, the backbone of most of MMSegmentation's configs.

    Args:
        asr, convs (dict, optional): As of :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, the stock network.
        **kwargs: The arguments of mmseg's ResNetV1c.
    """

    stock = ResNetV1c
