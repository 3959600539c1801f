"""One network with convolutions that train with branches, in every form there is, to be compared. Needs torch only."""

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import nn

from ...convolutions.orepa import EXPANSION, Pointwise, Square
from ...core.attach import CONVOLUTIONS, attach
from ...core.fold import fold


def convolutions(plain: nn.Module, kinds: Sequence[str]) -> dict[str, nn.Module]:
    """Copies of a network, plain and with convolutions that train with branches: in training form and deployed; OREPA also in
    the form of its authors.

    Where a kind can start as the identity it does, so that every variant has the same work after the backbone.

    Args:
        plain (nn.Module): A network.
        kinds (Sequence[str]): Names in :data:`mmasr.core.attach.CONVOLUTIONS`.

    Returns:
        dict[str, nn.Module]: The networks by name, ``plain`` first.

    Raises:
        ValueError: If a kind finds no site in the network.
    """
    result = {'plain': copy.deepcopy(plain)}
    for kind in kinds:
        identity = {'init_identity': True} if 'init_identity' in inspect.signature(CONVOLUTIONS[kind]).parameters else {}
        result[kind] = attach(copy.deepcopy(plain), {'type': kind, **identity})
        if kind == 'OREPA':
            result["OREPA, the authors' form"] = by_autograd(copy.deepcopy(result[kind]))
        result[f'{kind}, deployed'] = fold(copy.deepcopy(result[kind]))
    return result


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
