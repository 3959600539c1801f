"""Networks whose attention was removed after training."""

from collections.abc import Sequence

from torch import nn

from ..core.class_surgery import replace_module, restore_classes
from ..errors import InputError, shortened
from ..registry import MODELS


@MODELS.register_module()
def WithoutAttention(network: dict, modules: Sequence[str], **options) -> nn.Module:  # noqa: N802
    """Build any registered network, and remove attention modules from it.

    Args:
        network (dict): Config of the network, of any registry that mmengine knows.
        modules (Sequence[str]): Names of the attention modules.
        **options: More arguments of the network, which a runner may add.

    Returns:
        nn.Module: The network, with ``nn.Identity`` in place of these modules.

    Raises:
        InputError: If ``network`` is not a config, ``modules`` is not a list of names, or a module does not
            exist.
    """
    if not isinstance(network, dict):
        raise InputError(f'WithoutAttention: network must be the config of a network, not {network!r}')
    if not isinstance(modules, list | tuple):
        raise InputError(f'WithoutAttention: modules must be a list of names, not {modules!r}')
    model = MODELS.build({**network, **options})
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if missing := [str(name) for name in modules if name not in known]:
        raise InputError(f'WithoutAttention: {type(model).__name__} has no module {shortened(missing)}')
    removed = {model.get_submodule(name) for name in modules}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in removed:
            replace_module(model, name, nn.Identity())
    restore_classes(model)
    return model
