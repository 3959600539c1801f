"""MMPretrain's backbones with ASR at the paper's sites (its Fig. 8 to 11)."""

from mmpretrain.models.backbones import VGG, MobileNetV2, RepVGG, ShuffleNetV2

from ..registry import MODELS
from .any import WithASR


@MODELS.register_module()
class ASRVGG(WithASR, VGG):
    """mmpretrain's VGG with ASR at the normalization before every ReLU; it needs ``norm_cfg``.

    Args:
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`. Default: None, the stock network.
        *args, **kwargs: The arguments of mmpretrain's VGG.
    """


@MODELS.register_module()
class ASRShuffleNetV2(WithASR, ShuffleNetV2):
    """mmpretrain's ShuffleNetV2 with ASR at the last normalization of every residual branch. Arguments as of
    :class:`ASRVGG`."""


@MODELS.register_module()
class ASRMobileNetV2(WithASR, MobileNetV2):
    """mmpretrain's MobileNetV2 with ASR at the normalizations of the depthwise and the last convolution of every block.
    Arguments as of :class:`ASRVGG`."""


@MODELS.register_module()
class ASRRepVGG(WithASR, RepVGG):
    """mmpretrain's RepVGG with one ASR for the sum of the branches of every block. Arguments as of :class:`ASRVGG`.

    ``switch_to_deploy`` folds the ASR and merges the branches; ``tools/reparam.py`` does both as well.
    """
