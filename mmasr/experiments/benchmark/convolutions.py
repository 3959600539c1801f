"""Variants of one network whose convolutions train with branches, to be compared. Needs torch only."""

import ast
import copy
import inspect
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ...convolutions.dynamic import SelfAttention
from ...convolutions.orepa import EXPANSION, OREPA1x1, OREPAKxK
from ...convolutions.xvolution import XVolution
from ...core.asr import ASR
from ...core.attach import attach
from ...core.compat import unfused_attention
from ...core.fold import fold
from ...core.reparameterization import REPARAMETERIZATIONS
from ...errors import InputError


def convolution_types() -> list[str]:
    """Return the names of the re-parameterizations of convolutions, sorted: all but ASR."""
    return sorted(name for name, kind in REPARAMETERIZATIONS.items() if kind is not ASR)


def parse_spec(text: str) -> dict:
    """Parse a re-parameterization of convolutions that is written on one line.

    Args:
        text (str): A name from :func:`convolution_types`, and its options after commas.

    Returns:
        dict: ``type`` and the options, for :func:`mmasr.attach`.

    Raises:
        InputError: If the name or an option is unknown, or an option has no value.

    Example:
        >>> parse_spec('XVolution,branch=sa,convolution=False')
        {'type': 'XVolution', 'branch': 'sa', 'convolution': False}
    """
    name, *given = text.split(',')
    if name not in convolution_types():
        raise InputError(f'{name}: unknown type; known are {", ".join(convolution_types())}')
    options = {}
    for item in given:
        option, _, value = item.partition('=')
        if option not in inspect.signature(REPARAMETERIZATIONS[name]).parameters or not value:
            raise InputError(f'{text}: {item} is not an option of {name} with a value, such as branch=sa')
        options[option] = value
        with suppress(ValueError, SyntaxError):  # a plain word
            options[option] = ast.literal_eval(value)
    return {'type': name, **options}


def convolution_variants(plain: nn.Module, specs: Sequence[str]) -> dict[str, nn.Module]:
    """Make copies of a network: plain, and with re-parameterized convolutions, in training form and deployed.

    OREPA is also made in the form of its authors (:func:`compute_by_autograd`). X-volution is also made with
    global self-attention as its second branch. Types that can start as the identity do, so that every variant
    has the same work after the backbone.

    Args:
        plain (nn.Module): A network.
        specs (Sequence[str]): Types and their options; see :func:`parse_spec`.

    Returns:
        dict[str, nn.Module]: Name -> network, with ``plain`` first.

    Raises:
        InputError: If a type is unknown or finds no site in the network.
    """
    result = {'plain': copy.deepcopy(plain)}
    for text in specs:
        spec = parse_spec(text)
        kind = REPARAMETERIZATIONS[spec['type']]
        if 'init_identity' in inspect.signature(kind).parameters and spec.get('convolution', True):
            spec['init_identity'] = True
        result[text] = attach(copy.deepcopy(plain), spec)
        if spec['type'] == 'OREPA':
            result["OREPA, the authors' form"] = compute_by_autograd(copy.deepcopy(result[text]))
        for layer in result[text].modules():
            # A weight of 0, as at the identity, would leave no second branch to deploy.
            if isinstance(layer, XVolution) and layer.init_identity:
                nn.init.constant_(layer.dynamic.norm.weight, 1e-6)
        result[f'{text}, deployed'] = fold(copy.deepcopy(result[text]))
    if any(isinstance(layer, XVolution) for model in result.values() for layer in model.modules()):
        spec = {'type': 'XVolution', 'branch': 'sa', 'init_identity': True}
        for fused in (False, True):
            name = 'global self-attention' + (', fused' if fused else '')
            result[name] = use_global_attention(attach(copy.deepcopy(plain), spec), fused)
    return result


def use_global_attention(network: nn.Module, fused: bool = False) -> nn.Module:
    """Extend the self-attention of a network's X-volutions from a window to the whole feature map, in place.

    Args:
        network (nn.Module): A network with X-volutions whose branch is ``'sa'``.
        fused (bool): See :class:`GlobalSelfAttention`. Default: False.

    Returns:
        nn.Module: ``network``.
    """
    for layer in network.modules():
        if isinstance(layer, XVolution):
            layer.dynamic.branch = GlobalSelfAttention(layer.dynamic.branch, fused)
    return network


class GlobalSelfAttention(nn.Module):
    """Self-attention over the whole feature map, in O(n²) for n positions.

    Args:
        local (SelfAttention): Self-attention over a window, whose queries, keys and values are used.
        fused (bool): Whether to use torch's fused kernel, which does not store the weights of all pairs of
            positions. Default: False.
    """

    def __init__(self, local: SelfAttention, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = local.query, local.key, local.value
        self.heads, self.fused = local.heads, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        query = self.query(x)
        maps = query, self.key(x), self.value(x)
        # Contiguous, because the fused kernel needs that.
        heads = [y.flatten(2).unflatten(1, (self.heads, -1)).mT.contiguous() for y in maps]
        with nullcontext() if self.fused else unfused_attention():
            return scaled_dot_product_attention(*heads).mT.flatten(1, 2).view_as(query)


def compute_by_autograd(network: nn.Module) -> nn.Module:
    """Make the OREPA layers of a network compute their kernels like the code of OREPA's authors, in place.

    That code computes each branch separately and then scales it, with operations that automatic
    differentiation records.

    Args:
        network (nn.Module): A network with OREPA.

    Returns:
        nn.Module: ``network``.
    """
    for module in network.modules():
        if type(module) is OREPAKxK:
            module.__class__ = _AutogradOREPAKxK
        elif type(module) is OREPA1x1:
            module.__class__ = _AutogradOREPA1x1
    return network


class _AutogradOREPA1x1(OREPA1x1):
    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        row = torch.einsum('ti,ot->oi', self.inner, self.outer[:, 0])
        return _scaled_sum([weight.flatten(1), row], self.scale).view_as(weight)


class _AutogradOREPAKxK(OREPAKxK):
    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        outputs, own, *_ = weight.shape
        inner = (self.inner.view(-1, own, own) + torch.eye(own).to(weight)).view(self.groups, -1, own)
        outer = self.outer.view(self.groups, outputs // self.groups, *self.outer.shape[1:])
        row = torch.einsum('gti,gokt->goik', inner, outer)
        points = [
            torch.einsum('oi,ok->oik', *pair) for pair in zip(self.points, self.basis.unbind(1), strict=True)
        ]
        depthwise = self.depthwise.view(self.groups, own, EXPANSION, -1)
        pointwise = self.pointwise.view(self.groups, own, EXPANSION, -1)
        separable = torch.einsum('gitk,gito->goik', depthwise, pointwise)
        kernels = [weight.flatten(2), row.flatten(0, 1), *points, separable.flatten(0, 1)]
        return _scaled_sum(kernels, self.scale).view_as(weight)


def _scaled_sum(kernels: list[torch.Tensor], scales: torch.Tensor) -> torch.Tensor:
    return sum(torch.einsum('o...,o->o...', *pair) for pair in zip(kernels, scales, strict=True))
