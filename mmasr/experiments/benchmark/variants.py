"""Variants of one network with attention in every form, to be compared. Needs torch only."""

import copy
import functools
from collections.abc import Callable, Sequence

from torch import nn

from ...attention import ATTENTIONS, build_attention
from ...core.asr import ASR
from ...core.attach import attach
from ...core.fold import fold
from ...core.scaling import output_channels
from ...core.sites import find_sites, no_sites
from ...errors import InputError


def insert_after(model: nn.Module, sites: Sequence[str], make: Callable[[int], nn.Module]) -> nn.Module:
    """Insert a module after each of some layers, in place.

    Args:
        model (nn.Module): A network.
        sites (Sequence[str]): Names of layers that can be hosts.
        make (callable): ``channels -> module``, where the module maps (N, C, H, W) to the same shape.

    Returns:
        nn.Module: ``model``.
    """
    for site in sites:
        layer = model.get_submodule(site)
        module = make(output_channels(layer)).to(next(layer.parameters()))
        parent, _, name = site.rpartition('.')
        setattr(model.get_submodule(parent), name, nn.Sequential(layer, module))
    return model


def attention_variants(
    plain: nn.Module, attentions: Sequence[str], deltas: Sequence[int] = (1,)
) -> dict[str, nn.Module]:
    """Make copies of a network: plain, and with attention in every form.

    The forms are κ; ASR(κ) in training form, in the paper's form and deployed; and ASR(κ) + κ. κ and the
    paper's form need a feature map, so a transformer has only the plain, the training and the deployed form.

    All modules start as the identity. So every variant computes the same and has the same work after the
    backbone: the number of a detector's proposals depends on the features.

    Args:
        plain (nn.Module): A network whose sites are known.
        attentions (Sequence[str]): Names of attention modules κ. Those with a spatial map have no ASR.
        deltas (Sequence[int]): Numbers δ of attention modules in an ASR, for its training form and the
            paper's form. Default: 1.

    Returns:
        dict[str, nn.Module]: Name -> network, with ``plain`` first.

    Raises:
        InputError: If no site is found, an attention is unknown, or the network is a transformer and all
            attentions have a spatial map.
    """
    sites = find_sites(plain)
    network = type(plain).__name__
    if not sites:
        raise InputError(f'no site for attention found in {network}: it {no_sites(plain)}')
    maps = not any(isinstance(plain.get_submodule(site), nn.Linear | nn.MultiheadAttention) for site in sites)
    result = {'plain': copy.deepcopy(plain)}
    for name in attentions:
        attention = functools.partial(build_attention, {'type': name, 'init_identity': True})
        if maps:
            result[name] = insert_after(copy.deepcopy(plain), sites, attention)
        if getattr(ATTENTIONS.get(name), 'spatial', False):
            continue
        for delta in deltas:
            form = f'ASR({name})' + (f', δ = {delta}' if len(deltas) > 1 or delta > 1 else '')
            asr = functools.partial(ASR, {'type': name}, delta=delta, init_identity=True)
            result[form] = _with_asr(plain, name, delta)
            if maps:
                result[f"{form}, the paper's form"] = insert_after(copy.deepcopy(plain), sites, asr)
        result[f'ASR({name}), deployed'] = fold(_with_asr(plain, name, deltas[0]))
        if maps:
            result[f'ASR({name}) + {name}'] = insert_after(
                _with_asr(plain, name, deltas[0]), sites, attention
            )
    if len(result) == 1:
        raise InputError(
            f'{network} is a transformer, which has no feature maps, but {", ".join(attentions)} needs one'
        )
    return result


def _with_asr(plain: nn.Module, attention: str, delta: int) -> nn.Module:
    return attach(copy.deepcopy(plain), {'type': attention}, delta=delta, init_identity=True)
