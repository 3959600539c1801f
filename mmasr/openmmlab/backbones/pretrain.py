"""MMPretrain's backbones with ASR at the paper's sites (its Fig. 8 to 11)."""

from mmpretrain.models.backbones import VGG, MobileNetV2, RepVGG, ShuffleNetV2, VisionTransformer

from ...registry import MODELS
from ..networks.shufflenet_cifar import ShuffleNetV2CIFAR
from .base import WithASR


@MODELS.register_module()
class ASRVGG(WithASR, VGG):
    """mmpretrain's VGG with ASR at the normalization before every ReLU; it needs ``norm_cfg``.

    Args:
        asr, convs (dict, optional): As of :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, the stock network.
        *args, **kwargs: The arguments of mmpretrain's VGG.

    Raises:
        ValueError: If there is no ``norm_cfg``, and ``asr`` names no other sites.
    """

    stock = VGG

    def __init__(self, *args, asr: dict | None = None, **kwargs) -> None:
        if asr is not None and asr.get('sites') is None and kwargs.get('norm_cfg') is None:
            raise ValueError("ASRVGG has no normalization to carry an ASR; pass norm_cfg=dict(type='BN')")
        super().__init__(*args, asr=asr, **kwargs)


@MODELS.register_module()
class ASRShuffleNetV2(WithASR, ShuffleNetV2):
    """mmpretrain's ShuffleNetV2 with ASR at the last normalization of every residual branch. Arguments as of
    :class:`ASRVGG`."""

    stock = ShuffleNetV2


@MODELS.register_module()
class ASRShuffleNetV2CIFAR(WithASR, ShuffleNetV2CIFAR):
    """``mmasr.ShuffleNetV2CIFAR`` with ASR as in :class:`ASRShuffleNetV2`."""

    stock = ShuffleNetV2CIFAR


@MODELS.register_module()
class ASRMobileNetV2(WithASR, MobileNetV2):
    """mmpretrain's MobileNetV2 with ASR at the normalizations of the depthwise and the last convolution of every block.
    Arguments as of :class:`ASRVGG`."""

    stock = MobileNetV2


@MODELS.register_module()
class ASRRepVGG(WithASR, RepVGG):
    """mmpretrain's RepVGG with one ASR for the sum of the branches of every block. Arguments as of :class:`ASRVGG`.

    ``switch_to_deploy`` folds the ASR and merges the branches; ``tools/reparam.py`` does both as well.
    """

    stock = RepVGG


@MODELS.register_module()
class ASRVisionTransformer(WithASR, VisionTransformer):
    """mmpretrain's VisionTransformer with ASR at what multi-head attention and MLP put out, over the feature dimension.

    There the gate is tanh, and ψ and all parameters of κ start at 1e-3 (as in the paper), unless ``asr`` says something else
    (:func:`mmasr.core.asr.for_transformer`). Arguments as of :class:`ASRVGG`.
    """

    stock = VisionTransformer
