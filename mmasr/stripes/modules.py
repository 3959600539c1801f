"""Attention modules of any library: which there are in a network, and what values they give. Needs torch only."""

from collections.abc import Callable

import torch
from torch import nn

from ..core.asr import ASR
from ..core.by_class import by_class
from ..errors import InputError

#: How the attention values v of a module are read, by package and class: the name of the child module that puts them out,
#: or of a method that maps the module's input to them. Subclasses are known with their class. A module of one's own is
#: added with ``VALUES['mypackage.MyAttention'] = 'gate'``.
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


def _reader(module: nn.Module) -> str | None:
    """The entry of :data:`VALUES` for a module, if it has one."""
    name = by_class(VALUES, module)
    return name if name and hasattr(module, name) else None


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network that compute attention from their input, those inside an ASR left out.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, nn.Module]: By name, in the network's order.
    """
    found, inside = {}, set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, ASR):
            inside.update(module.modules())
        elif _reader(module):
            inside.update(module.modules())
            found[name] = module
    return found


class ValueReader:
    """Reads the attention values of one module while the network runs.

    Args:
        module (nn.Module): One of :func:`attention_modules`.
        seen (callable): Called after every forward of the module with its input, its values v of shape (N, C), and its
            output.
        name (str): The module's name, for errors.
    """

    def __init__(self, module: nn.Module, seen: Callable[..., None], name: str) -> None:
        self.seen = seen
        self.name = name
        self.source = getattr(module, _reader(module))
        self.put_out = None
        self.handles = [module.register_forward_hook(self._after_module)]
        if isinstance(self.source, nn.Module):
            self.handles.append(self.source.register_forward_hook(self._after_source))

    def _after_source(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.put_out = output

    @torch.no_grad()
    def _after_module(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        x = args[0]
        v = self.put_out if isinstance(self.source, nn.Module) else self.source(x)
        self.put_out = None
        is_map = (
            v is not None and v.dim() == x.dim() and v.shape[:2] != x.shape[:2]
        )  # it may have as many positions as channels
        if v is None or is_map or v.numel() != x.shape[0] * x.shape[1]:
            shape = 'nothing' if v is None else tuple(v.shape)
            raise InputError(
                f'{self.name} ({type(module).__name__}): its values are {shape} for an input of {tuple(x.shape)}; stripes are '
                'a matter of channels, so there must be one value for every image and channel'
            )
        self.seen(x, v.reshape(x.shape[:2]), output)

    def remove(self) -> None:
        """Stop reading."""
        for handle in self.handles:
            handle.remove()
