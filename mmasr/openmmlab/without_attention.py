"""Networks some of whose attention was folded after training."""

from collections.abc import Sequence

from torch import nn

from ..core.surgery import replace, restore_classes
from ..registry import MODELS


@MODELS.register_module()
def WithoutAttention(network: dict, modules: Sequence[str], **options) -> nn.Module:
    """Build any registered network and take some of its attention modules out: those whose mean was folded after training.

    Args:
        network (dict): Config of the network, of any registry that mmengine knows.
        modules (Sequence[str]): Names of the modules.
        **options: Further arguments of the network, which a runner may add.

    Raises:
        AttributeError: If there is no such module.
    """
    model = MODELS.build({**network, **options})
    for name in modules:
        replace(model, name, nn.Identity())
    restore_classes(model)
    return model
