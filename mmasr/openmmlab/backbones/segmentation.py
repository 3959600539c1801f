"""MMSegmentation's ResNetV1c with ASR at the sites of the paper's Fig. 7."""

from mmseg.models.backbones import ResNetV1c

from ...registry import MODELS
from .base import WithASR


@MODELS.register_module()
class ASRResNetV1c(WithASR, ResNetV1c):
    """ResNetV1c of mmseg with ASR at the last normalization of every residual block.

    ResNetV1c is the backbone of most of MMSegmentation's configs.

    Args:
        asr (dict, optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, no ASR.
        convs (dict | Sequence[dict], optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default:
            None, the stock convolutions.
        **kwargs: Arguments of mmseg's ResNetV1c.
    """

    stock = ResNetV1c
