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
    model = build_network('WithoutAttention', network, modules, options)
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if missing := [str(name) for name in modules if name not in known]:
        raise InputError(f'WithoutAttention: {type(model).__name__} has no module {shortened(missing)}')
    removed = {model.get_submodule(name) for name in modules}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in removed:
            replace_module(model, name, nn.Identity())
    restore_classes(model)
    return model


def build_network(kind: str, network: dict, modules: Sequence[str], options: dict) -> nn.Module:
    """Build the network whose attention modules a type of mmasr changes, after checking its arguments.

    Args:
        kind (str): Name of the type, for errors.
        network (dict): Config of the network.
        modules (Sequence[str]): Names of modules.
        options (dict): More arguments of the network.

    Returns:
        nn.Module: The network.

    Raises:
        InputError: If ``network`` is not a config, or ``modules`` is not a list of names.
    """
    if not isinstance(network, dict):
        raise InputError(f'{kind}: network must be the config of a network, not {network!r}')
    if not isinstance(modules, list | tuple):
        raise InputError(f'{kind}: modules must be a list of names, not {modules!r}')
    return MODELS.build({**network, **options})
