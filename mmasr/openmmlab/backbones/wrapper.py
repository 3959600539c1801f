"""Re-parameterization in any registered backbone."""

from collections.abc import Sequence

from torch import nn

from ...core.class_surgery import mixed_class
from ...errors import InputError
from ...registry import MODELS
from .base import WithASR, attach_all, without_folded


@MODELS.register_module()
def ASRBackbone(  # noqa: N802
    backbone: dict,
    asr: dict | None = None,
    sites: str | Sequence[str] | None = None,
    convs: dict | Sequence[dict] | None = None,
    pretrained: str | None = None,
) -> nn.Module:
    """Build any registered backbone, and insert ASR, re-parameterized convolutions, or both.

    The result is the inner backbone itself, so the names in its state dict stay the same. If the module that
    contains a host is frozen, the ASR is frozen as well.

    Args:
        backbone (dict): Config of the inner backbone, of any registry that mmengine knows.
        asr (dict, optional): ``attention`` and the other options of :class:`mmasr.ASR`. Default: None, no
            ASR.
        sites (str | Sequence[str], optional): Sites of the ASR, unless ``asr`` has ``sites``; see
            :func:`mmasr.attach`. Default: None, the default sites.
        convs (dict | Sequence[dict], optional): See :class:`mmasr.openmmlab.backbones.base.WithASR`. Default:
            None, the stock convolutions.
        pretrained (str, optional): Argument for the inner backbone. A model of MMSegmentation sets its own
            ``pretrained`` in the config of its backbone. Default: None, not passed.

    Returns:
        nn.Module: The backbone.

    Raises:
        InputError: If ``backbone`` is not a dict, or both ``asr`` and ``convs`` are missing; see also
            :func:`mmasr.attach`.
    """
    if not isinstance(backbone, dict):
        raise InputError(f'ASRBackbone: backbone must be the config of a backbone, not {backbone!r}')
    if asr is None and convs is None:
        raise InputError('ASRBackbone has nothing to insert: pass asr, convs or both')
    model = MODELS.build(backbone if pretrained is None else {**backbone, 'pretrained': pretrained})
    attach_all(model, {'sites': sites, **asr} if asr and isinstance(asr, dict) else asr, convs)
    if hasattr(model, 'init_weights') and not isinstance(model, WithASR):
        model.__class__ = mixed_class(WithASR, type(model))
    return model


def _deployed_config(config: dict, network: nn.Module | None) -> dict:
    """Return the inner backbone's config, or ``config`` without the ASR if some convolutions remain."""
    rest = without_folded({key: value for key, value in config.items() if key != 'sites'}, network)
    return rest if 'convs' in rest else config['backbone']


ASRBackbone.deployed_config = _deployed_config
