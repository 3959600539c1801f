"""One network with convolutions that train with branches, in every form there is, to be compared. Needs torch only."""

import ast
import copy
import inspect
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ...convolutions.dynamic import SelfAttention
from ...convolutions.orepa import EXPANSION, Pointwise, Square
from ...convolutions.xvolution import XVolution
from ...core.attach import CONVOLUTIONS, attach
from ...core.fold import fold
from ...core.versions import unfused_attention


def kind_and_options(text: str) -> dict:
    """The config of a convolution with branches that is written on one line.

    Args:
        text (str): Its name in :data:`mmasr.core.attach.CONVOLUTIONS`, and options, after commas.

    Returns:
        dict: ``type`` and the options.

    Raises:
        ValueError: If the name is unknown, or something has no value.

    Example:
        >>> kind_and_options('XVolution,branch=sa,convolution=False')
        {'type': 'XVolution', 'branch': 'sa', 'convolution': False}
    """
    kind, *given = text.split(',')
    if kind not in CONVOLUTIONS:
        raise ValueError(f'{kind}: unknown; known are {", ".join(sorted(CONVOLUTIONS))}')
    options = {}
    for option in given:
        name, _, value = option.partition('=')
        if name not in inspect.signature(CONVOLUTIONS[kind]).parameters or not value:
            raise ValueError(f'{text}: {option} is not an option of {kind} with its value, such as branch=sa')
        options[name] = value
        with suppress(ValueError, SyntaxError):  # a plain word
            options[name] = ast.literal_eval(value)
    return {'type': kind, **options}


def convolutions(plain: nn.Module, kinds: Sequence[str]) -> dict[str, nn.Module]:
    """Copies of a network, plain and with convolutions that train with branches: in training form and deployed; OREPA also in
    the form of its authors, and in the place of X-volution's second branch global self-attention.

    Where a kind can start as the identity it does, so that every variant has the same work after the backbone.

    Args:
        plain (nn.Module): A network.
        kinds (Sequence[str]): Kinds and their options, see :func:`kind_and_options`.

    Returns:
        dict[str, nn.Module]: The networks by name, ``plain`` first.

    Raises:
        ValueError: If a kind is unknown or finds no site in the network.
    """
    result = {'plain': copy.deepcopy(plain)}
    for text in kinds:
        config = kind_and_options(text)
        kind = CONVOLUTIONS[config['type']]
        if 'init_identity' in inspect.signature(kind).parameters and config.get('convolution', True):
            config['init_identity'] = True
        result[text] = attach(copy.deepcopy(plain), config)
        if config['type'] == 'OREPA':
            result["OREPA, the authors' form"] = by_autograd(copy.deepcopy(result[text]))
        for layer in result[text].modules():
            if isinstance(layer, XVolution) and layer.init_identity:  # with 0 there would be nothing to deploy
                nn.init.constant_(layer.dynamic.norm.weight, 1e-6)
        result[f'{text}, deployed'] = fold(copy.deepcopy(result[text]))
    if any(isinstance(layer, XVolution) for model in result.values() for layer in model.modules()):
        for fused in (False, True):
            name = 'global self-attention' + (', fused' if fused else '')
            result[name] = globally(
                attach(copy.deepcopy(plain), {'type': 'XVolution', 'branch': 'sa', 'init_identity': True}), fused
            )
    return result


def globally(network: nn.Module, fused: bool = False) -> nn.Module:
    """Let the self-attention of a network's X-volutions see the whole map, in place.

    Args:
        network (nn.Module): A network with X-volutions whose branch is ``'sa'``.
        fused (bool): As of :class:`GlobalSelfAttention`. Default: False.
    """
    for layer in network.modules():
        if isinstance(layer, XVolution):
            layer.dynamic.branch = GlobalSelfAttention(layer.dynamic.branch, fused)
    return network


class GlobalSelfAttention(nn.Module):
    """Self-attention over the whole map: O(n²) in the number of positions.

    Args:
        local (SelfAttention): The queries, keys and values, over a window.
        fused (bool): By torch's kernel, which does not keep the weights of all pairs. Default: False.
    """

    def __init__(self, local: SelfAttention, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = local.query, local.key, local.value
        self.heads, self.fused = local.heads, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        query = self.query(x)
        maps = query, self.key(x), self.value(x)
        heads = [y.flatten(2).unflatten(1, (self.heads, -1)).mT.contiguous() for y in maps]  # as the fused kernel wants them
        with nullcontext() if self.fused else unfused_attention():
            return scaled_dot_product_attention(*heads).mT.flatten(1, 2).view_as(query)


def by_autograd(network: nn.Module) -> nn.Module:
    """Let a network with OREPA compute its kernels as the code of OREPA's authors does: each branch by itself and then scaled,
    by operations that automatic differentiation follows. In place."""
    for module in network.modules():
        if type(module) is Square:
            module.__class__ = _SquareByAutograd
        elif type(module) is Pointwise:
            module.__class__ = _PointwiseByAutograd
    return network


class _PointwiseByAutograd(Pointwise):
    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        row = torch.einsum('ti,ot->oi', self.inner, self.outer[:, 0])
        return _sum([weight.flatten(1), row], self.scale).view_as(weight)


class _SquareByAutograd(Square):
    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        outputs, own, *_ = weight.shape
        inner = (self.inner.view(-1, own, own) + torch.eye(own).to(weight)).view(self.groups, -1, own)
        outer = self.outer.view(self.groups, outputs // self.groups, *self.outer.shape[1:])
        row = torch.einsum('gti,gokt->goik', inner, outer)
        points = [torch.einsum('oi,ok->oik', *pair) for pair in zip(self.points, self.basis.unbind(1), strict=True)]
        depthwise = self.depthwise.view(self.groups, own, EXPANSION, -1)
        pointwise = self.pointwise.view(self.groups, own, EXPANSION, -1)
        separable = torch.einsum('gitk,gito->goik', depthwise, pointwise)
        kernels = [weight.flatten(2), row.flatten(0, 1), *points, separable.flatten(0, 1)]
        return _sum(kernels, self.scale).view_as(weight)


def _sum(kernels: list[torch.Tensor], scales: torch.Tensor) -> torch.Tensor:
    return sum(torch.einsum('o...,o->o...', *pair) for pair in zip(kernels, scales, strict=True))
