"""MobileNet with ASR at the sites of the paper's Fig. 10."""

from ...registry import MODELS
from ..networks.mobilenet import MobileNet
from .base import WithASR


@MODELS.register_module()
class ASRMobileNet(WithASR, MobileNet):
    """MobileNet of this package with ASR at both normalizations of every block.

    Args:
        *args: Arguments of ``mmasr.MobileNet``.
        asr (dict, optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, no ASR.
        convs (dict | Sequence[dict], optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default:
            None, the stock convolutions.
        **kwargs: Arguments of ``mmasr.MobileNet``.
    """

    stock = MobileNet
