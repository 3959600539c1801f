"""Re-parameterization in a backbone of somebody else."""

from collections.abc import Sequence

from torch import nn

from ...core.surgery import mixed_class
from ...registry import MODELS
from .base import WithASR, attach_all, without_folded


@MODELS.register_module()
def ASRBackbone(
    backbone: dict,
    asr: dict | None = None,
    sites: str | Sequence[str] | None = None,
    convs: dict | None = None,
    pretrained: str | None = None,
) -> nn.Module:
    """Build any registered backbone and put ASR, or convolutions that train with branches, into it.

    The result is the inner backbone itself, so that its state dict keeps its names. An ASR whose surroundings (the module
    that its host is a child of) are frozen is frozen with them.

    Args:
        backbone (dict): Config of the inner backbone, of any registry that mmengine knows.
        asr (dict, optional): ``attention`` and the other options of :class:`mmasr.ASR`. Default: None, no ASR.
        sites (str | Sequence[str], optional): Of the ASR, see :func:`mmasr.attach`.
        convs (dict, optional): As of :class:`mmasr.openmmlab.backbones.base.WithASR`. Default: None, the stock convolutions.
        pretrained (str, optional): Handed on to the inner backbone: what MMSegmentation's models are given, they set in the
            config of their backbone. Default: None.

    Raises:
        ValueError: As :func:`mmasr.attach`, or if there is neither ``asr`` nor ``convs``.
    """
    if asr is None and convs is None:
        raise ValueError('ASRBackbone has nothing to put into its backbone: give asr, convs or both')
    model = MODELS.build(backbone if pretrained is None else {**backbone, 'pretrained': pretrained})
    attach_all(model, asr and {'sites': sites, **asr}, convs)
    if hasattr(model, 'init_weights') and not isinstance(model, WithASR):
        model.__class__ = mixed_class(WithASR, type(model))
    return model


def _deployed_config(config: dict, network: nn.Module | None) -> dict:
    rest = without_folded({key: value for key, value in config.items() if key != 'sites'}, network)  # those of the ASR
    return rest if 'convs' in rest else config['backbone']


ASRBackbone.deployed_config = _deployed_config
