"""MMPretrain's backbones with ASR at the sites of the paper's Fig. 8 to 11."""

from mmpretrain.models.backbones import VGG, MobileNetV2, RepVGG, ShuffleNetV2, VisionTransformer

from ...errors import InputError
from ...registry import MODELS
from ..networks.shufflenet_cifar import ShuffleNetV2CIFAR
from .base import WithASR


@MODELS.register_module()
class ASRVGG(WithASR, VGG):
    """VGG of mmpretrain with ASR at the normalization before every ReLU.

    Args:
        *args: Arguments of mmpretrain's VGG.
        asr (dict, optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. It needs
            ``norm_cfg``, or ``sites`` of its own. Default: None, no ASR.
        convs (dict | Sequence[dict], optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default:
            None, the stock convolutions.
        **kwargs: Arguments of mmpretrain's VGG.

    Raises:
        InputError: If ``asr`` is given without ``sites``, and there is no ``norm_cfg``.
    """

    stock = VGG

    def __init__(self, *args, asr: dict | None = None, **kwargs) -> None:
        if isinstance(asr, dict) and asr.get('sites') is None and kwargs.get('norm_cfg') is None:
            raise InputError("ASRVGG has no normalization to carry an ASR; pass norm_cfg=dict(type='BN')")
        super().__init__(*args, asr=asr, **kwargs)


@MODELS.register_module()
class ASRShuffleNetV2(WithASR, ShuffleNetV2):
    """ShuffleNetV2 of mmpretrain with ASR at the last normalization of every residual branch.

    Its arguments are those of mmpretrain's ShuffleNetV2 and of
    :class:`mmasr.openmmlab.backbones.base.WithASR`.
    """

    stock = ShuffleNetV2


@MODELS.register_module()
class ASRShuffleNetV2CIFAR(WithASR, ShuffleNetV2CIFAR):
    """ShuffleNetV2CIFAR of this package with ASR; see :class:`ASRShuffleNetV2`."""

    stock = ShuffleNetV2CIFAR


@MODELS.register_module()
class ASRMobileNetV2(WithASR, MobileNetV2):
    """MobileNetV2 of mmpretrain with ASR in every block, after the depthwise and the last convolution.

    The sites are the normalizations of these convolutions. Its arguments are those of mmpretrain's
    MobileNetV2 and of :class:`mmasr.openmmlab.backbones.base.WithASR`.
    """

    stock = MobileNetV2


@MODELS.register_module()
class ASRRepVGG(WithASR, RepVGG):
    """RepVGG of mmpretrain with one ASR for the sum of the branches of every block.

    Both ``switch_to_deploy`` and ``tools/reparam.py`` fold the ASR and merge the branches. Its arguments are
    those of mmpretrain's RepVGG and of :class:`mmasr.openmmlab.backbones.base.WithASR`.
    """

    stock = RepVGG


@MODELS.register_module()
class ASRVisionTransformer(WithASR, VisionTransformer):
    """VisionTransformer of mmpretrain with ASR at the outputs of multi-head attention and MLP.

    The scale is over the feature dimension. Its gate is tanh, and ψ and all parameters of κ start at 1e-3, as
    in the paper, unless ``asr`` sets other values; see :func:`mmasr.core.asr.for_transformer`. Its arguments
    are those of mmpretrain's VisionTransformer and of :class:`mmasr.openmmlab.backbones.base.WithASR`.
    """

    stock = VisionTransformer
