"""Networks with attention in blocks that have a place for it."""

from collections.abc import Sequence

import torch
from torch import nn

from ..attention import build_attention
from ..core.class_surgery import eval_copy, replace_module
from ..core.example_inputs import example_inputs, run
from ..errors import InputError, shortened
from ..registry import MODELS
from .without_attention import build_network


@MODELS.register_module()
def WithAttention(  # noqa: N802
    network: dict, attention: dict, modules: Sequence[str] | None = None, **options
) -> nn.Module:
    """Build any registered network, and replace its empty attention modules.

    Blocks of timm that can have SE contain an ``nn.Identity`` named ``se`` if they have none.

    Args:
        network (dict): Config of the network, of any registry that mmengine knows.
        attention (dict): Config of an attention module, such as ``dict(type='SE', init_identity=True)``. It
            stays at deployment.
        modules (Sequence[str], optional): Names of the ``nn.Identity`` modules to replace. Default: all that
            are named ``se``.
        **options: More arguments of the network, which a runner may add.

    Returns:
        nn.Module: The network.

    Raises:
        InputError: If ``network`` is not a config, ``modules`` is not a list of names, there is no such
            module, or it is not an ``nn.Identity`` that receives a feature map.
    """
    model = build_network('WithAttention', network, () if modules is None else modules, options)
    known = {name for name, module in model.named_modules() if name and isinstance(module, nn.Identity)}
    if modules is None:
        modules = sorted(name for name in known if name.rpartition('.')[2] == 'se')
        if not modules:
            raise InputError(f'WithAttention: {type(model).__name__} has no empty modules named se')
    if wrong := [str(name) for name in modules if name not in known]:
        raise InputError(f'WithAttention: {type(model).__name__} has no nn.Identity named {shortened(wrong)}')
    channels = _channels(model, modules)
    if unknown := [name for name in modules if name not in channels]:
        raise InputError(f'WithAttention: {shortened(unknown)} received no feature map (N, C, H, W)')
    for name in modules:
        replace_module(model, name, build_attention(attention, channels[name]))
    return model


def _channels(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Return the numbers of channels that modules receive when a network runs."""
    found: dict[str, int] = {}
    trial = eval_copy(model)
    inputs = example_inputs(trial)
    if inputs is None:
        return found

    def keep(name: str, x: torch.Tensor) -> None:
        if x.dim() == 4:
            found[name] = x.shape[1]

    for name in names:
        trial.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: keep(name, *args))
    run(trial, inputs, {})
    return found
