"""MobileNet with ASR at the paper's sites (its Fig. 10)."""

from ...registry import MODELS
from ..networks.mobilenet import MobileNet
from .base import WithASR


@MODELS.register_module()
class ASRMobileNet(WithASR, MobileNet):
    """``mmasr.MobileNet`` with ASR at both normalizations of every block.

    Args:
        asr, convs (dict, optional): As of :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, the stock network.
        *args, **kwargs: The arguments of ``mmasr.MobileNet``.
    """

    stock = MobileNet
