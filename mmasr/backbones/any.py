"""ASR in a backbone of somebody else."""

from collections.abc import Sequence

from torch import nn

from ..hosts import attach
from ..registry import MODELS


@MODELS.register_module()
def ASRBackbone(backbone: dict, asr: dict, sites: str | Sequence[str] | None = None) -> nn.Module:
    """Build any registered backbone and attach ASR to it.

    The result is the inner backbone itself, so that its state dict keeps its names. Parts that the backbone freezes are
    frozen with their ASRs.

    Args:
        backbone (dict): Config of the inner backbone, of any registry that mmengine knows.
        asr (dict): ``attention`` and the other options of :class:`mmasr.ASR`.
        sites (str | Sequence[str], optional): See :func:`mmasr.attach`.

    Raises:
        ValueError: As :func:`mmasr.attach`.
    """
    model = attach(MODELS.build(backbone), sites=sites, **asr)
    if hasattr(model, '_freeze_stages'):
        model._freeze_stages()
    return model
