"""One network with attention in every form there is, to be compared. Needs torch only."""

import copy
import functools
from collections.abc import Callable, Sequence

from torch import nn

from ...attention import ATTENTIONS, build_attention
from ...core.asr import ASR
from ...core.attach import attach
from ...core.fold import fold
from ...core.known import find_sites, no_sites
from ...core.scaling import output_channels


def follow(model: nn.Module, sites: Sequence[str], make: Callable[[int], nn.Module]) -> nn.Module:
    """Put a module after each of a network's layers, in place.

    Args:
        model (nn.Module): A network.
        sites (Sequence[str]): Names of layers that can be hosts.
        make (callable): ``channels -> module``, the module mapping (N, C, H, W) to the same shape.

    Returns:
        nn.Module: ``model``.
    """
    for site in sites:
        layer = model.get_submodule(site)
        followed = nn.Sequential(layer, make(output_channels(layer)).to(next(layer.parameters())))
        parent, _, name = site.rpartition('.')
        setattr(model.get_submodule(parent), name, followed)
    return model


def variants(plain: nn.Module, attentions: Sequence[str], deltas: Sequence[int] = (1,)) -> dict[str, nn.Module]:
    """Copies of a network, plain and with attention: κ, ASR(κ) in training form, in the paper's form and deployed, ASR(κ) + κ.

    κ and the paper's form need a feature map, so of a transformer there are the plain, the training and the deployed form only.

    All modules start as the identity, so that every variant computes the same and has the same work after the backbone:
    the number of a detector's proposals depends on what the network computes.

    Args:
        plain (nn.Module): A network whose sites are known.
        attentions (Sequence[str]): Names of attention modules κ. There is no ASR of one with a spatial map.
        deltas (Sequence[int]): Numbers of attention modules in an ASR, for the two forms in training. Default: 1.

    Returns:
        dict[str, nn.Module]: The networks by name, ``plain`` first.

    Raises:
        ValueError: If no site is found, an attention is unknown, or a transformer gets none without a spatial map.
    """
    sites = find_sites(plain)
    if not sites:
        raise ValueError(f'no site for attention found in {type(plain).__name__}: it {no_sites(plain)}')
    maps = not any(isinstance(plain.get_submodule(site), nn.Linear | nn.MultiheadAttention) for site in sites)
    result = {'plain': copy.deepcopy(plain)}
    for name in attentions:
        attention = functools.partial(build_attention, {'type': name, 'init_identity': True})
        if maps:
            result[name] = follow(copy.deepcopy(plain), sites, attention)
        if getattr(ATTENTIONS.get(name), 'spatial', False):
            continue
        for delta in deltas:
            suffix = f', δ = {delta}' if len(deltas) > 1 or delta > 1 else ''
            asr = functools.partial(ASR, {'type': name}, delta=delta, init_identity=True)
            result[f'ASR({name}){suffix}'] = _with_asr(plain, name, delta)
            if maps:
                result[f"ASR({name}){suffix}, the paper's form"] = follow(copy.deepcopy(plain), sites, asr)
        result[f'ASR({name}), deployed'] = fold(_with_asr(plain, name, deltas[0]))
        if maps:
            result[f'ASR({name}) + {name}'] = follow(_with_asr(plain, name, deltas[0]), sites, attention)
    if len(result) == 1:
        name = type(plain).__name__
        raise ValueError(f'{name} is a transformer, without feature maps, and {", ".join(attentions)} needs one')
    return result


def _with_asr(plain: nn.Module, attention: str, delta: int) -> nn.Module:
    return attach(copy.deepcopy(plain), {'type': attention}, delta=delta, init_identity=True)
