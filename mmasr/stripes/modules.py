"""Attention modules of any library: how to find them in a network and read their values. Needs torch only."""

from collections.abc import Callable

import torch
from torch import nn

from ..core.asr import ASR
from ..core.class_lookup import lookup_by_class
from ..errors import InputError

#: How to read the attention values v of a module, by package and class: the name of the child module that
#: outputs them, or of a method that maps the module's input to them. Subclasses are included. Add a custom
#: module with ``VALUES['mypackage.MyAttention'] = 'gate'``.
VALUES = {
    'mmasr.ChannelAttention': 'weights',
    'mmasr.DIA': 'gate',
    'mmdet.SELayer': 'conv2',
    'mmpretrain.SELayer': 'conv2',
    'mmseg.SELayer': 'conv2',
    'timm.SEModule': 'gate',
    'timm.SqueezeExcite': 'gate',
    'timm.EffectiveSEModule': 'gate',
    'timm.EcaModule': 'gate',
    'timm.CecaModule': 'gate',
}


def _source_name(module: nn.Module) -> str | None:
    """Return the entry of :data:`VALUES` for a module; None if it has no entry, or lacks what that names."""
    name = lookup_by_class(VALUES, module)
    return name if name and hasattr(module, name) else None


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules that compute attention from their input, except those inside an ASR.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, nn.Module]: Name -> module, in the network's order.
    """
    found, inside = {}, set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, ASR):
            inside.update(module.modules())
        elif _source_name(module):
            inside.update(module.modules())
            found[name] = module
    return found


class ValueReader:
    """Reader of the attention values of one module while the network runs.

    Args:
        module (nn.Module): One of :func:`attention_modules`.
        callback (callable): Called after every forward pass of the module with its input, its values v of
            shape (N, C), and its output.
        name (str): Name of the module, for errors.

    Raises:
        InputError: During a forward pass, if the module has no single value per image and channel.
    """

    def __init__(self, module: nn.Module, callback: Callable[..., None], name: str) -> None:
        self.callback = callback
        self.name = name
        self.source = getattr(module, _source_name(module))
        self.source_output = None
        self.handles = [module.register_forward_hook(self._after_module)]
        if isinstance(self.source, nn.Module):
            self.handles.append(self.source.register_forward_hook(self._after_source))

    def _after_source(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.source_output = output

    @torch.no_grad()
    def _after_module(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        x = args[0]
        v = self.source_output if isinstance(self.source, nn.Module) else self.source(x)
        self.source_output = None
        # A spatial map may have as many positions as there are channels, so the number of values is not
        # enough.
        is_map = v is not None and v.dim() == x.dim() and v.shape[:2] != x.shape[:2]
        if v is None or is_map or v.numel() != x.shape[0] * x.shape[1]:
            shape = 'missing' if v is None else f'of shape {tuple(v.shape)}'
            raise InputError(
                f'{self.name} ({type(module).__name__}): its values are {shape} for an input of shape '
                f'{tuple(x.shape)}, but stripes need one value per image and channel'
            )
        self.callback(x, v.reshape(x.shape[:2]), output)

    def remove(self) -> None:
        """Stop reading."""
        for handle in self.handles:
            handle.remove()
