"""Insert re-parameterization into a network. Needs torch only."""

import re
from collections.abc import Callable, Sequence

from torch import nn

from ..errors import InputError
from .batched import enable_batching
from .class_surgery import replace_module
from .compat import FUSED_PATH_RESPECTS_HOOKS
from .foreign import fold_before_merge
from .host import Host, become_host
from .merge import merges_itself
from .removal_guard import guard_hosts
from .reparameterization import (
    BranchReparameterization,
    ParameterReparameterization,
    Reparameterization,
    resolve,
)
from .scaling import check_weight, output_channels


def attach(
    model: nn.Module,
    spec: dict | Callable[[int], nn.Module],
    sites: str | Sequence[str] | None = None,
    **options,
) -> nn.Module:
    """Insert re-parameterization into layers of a network, in place.

    A layer that is used in several places gets it once, in all of them.

    A layer with an ASR or OREPA runs with effective parameters: no feature map is touched, and the state dict
    keeps its names and gains ``<site>.asr.*`` or ``<site>.orepa.*``. Other convolutions are replaced by
    branches. :func:`mmasr.fold` turns all of them back into stock layers.

    Args:
        model (nn.Module): Any network.
        spec (dict | callable): What to insert: ``type`` and its options, such as ``dict(type='ACNet')``. The
            name of an attention module, ``dict(type='SE')``, is short for an ASR with it, and so is a
            callable ``channels -> module``.
        sites (str | Sequence[str], optional): The layers: a regular expression that matches their whole
            names, or a sequence of names. Default: for ASR the sites listed in docs/method.md, in networks
            whose blocks are all known; for convolutions those of the class, such as all 3 x 3 convolutions.
            Layers with a re-parameterization from an earlier call are not default sites, and neither are
            those inside it.
        **options: More options of the class, such as ``delta`` or ``init_identity`` of :class:`mmasr.ASR`. At
            the paper's sites in a ViT, ASR has the paper's defaults: :func:`mmasr.core.asr.for_transformer`.

    Returns:
        nn.Module: ``model``; or its replacement, if the whole model is one convolution.

    Raises:
        InputError: If no site is found, or if a site does not exist, does not support this, or has it
            already. The model is then unchanged.

    Example:
        >>> import torch, mmasr
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
        >>> mmasr.attach(model, dict(type='SE'), sites=['1'])[1].asr.scale().shape
        torch.Size([8])
        >>> mmasr.attach(model, dict(type='ACNet'), sites='0')[0].to_single_layer().kernel_size
        (3, 3)
    """
    kind, given = resolve(spec)
    modules = dict(model.named_modules(remove_duplicate=False))
    names = _find_sites(model, modules, kind, sites)
    options_at = kind.options_at(model, names, {**given, **options})
    places = {name: [place for place in modules if modules[place] is modules[name]] for name in names}
    for name in names:
        for place in places[name]:
            _check_site(modules, kind, place)
    made = {name: _from_layer(kind, name, modules[name], options_at[name]) for name in names}
    for name, new in made.items():
        if issubclass(kind, ParameterReparameterization):
            become_host(modules[name])
            setattr(modules[name], new.attribute, new)
        else:
            for place in places[name]:
                model = replace_module(model, place, new)
    fold_before_merge(model)
    if issubclass(kind, ParameterReparameterization):
        guard_hosts(model, [place for name in names for place in places[name]])
        enable_batching(model)
    return model


def attach_in_order(model: nn.Module, specs: Sequence[dict]) -> nn.Module:
    """Insert several kinds of re-parameterization into a network, in place, one after another.

    All ``sites`` refer to the network without them. An entry without ``sites`` gets the default sites that
    earlier entries do not have.

    Args:
        model (nn.Module): Any network.
        specs (Sequence[dict]): Entries with ``type``, its options and optionally ``sites``; see
            :func:`attach`.

    Returns:
        nn.Module: See :func:`attach`.

    Raises:
        InputError: If a layer is a site of two entries; see also :func:`attach`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    entries = [({key: value for key, value in spec.items() if key != 'sites'}, spec) for spec in specs]
    kinds = [resolve(options)[0] for options, _ in entries]
    named: dict[str, str] = {}
    sites = []
    for kind, (_, spec) in zip(kinds, entries, strict=True):
        given = spec.get('sites')
        names = None if given is None else _find_sites(model, modules, kind, given)
        for name in names or ():
            if name in named:
                raise InputError(f'{name} is a site of both {named[name]} and {kind.__name__}; name it once')
            named[name] = kind.__name__
        sites.append(names)
    by_default: dict[str, str] = {}
    for kind, (options, _), names in zip(kinds, entries, sites, strict=True):
        if names is None:
            modules = dict(model.named_modules(remove_duplicate=False))
            names = _find_sites(model, modules, kind, None)
            by_default.update(dict.fromkeys(names, kind.__name__))
        elif both := [name for name in names if name in by_default]:
            raise InputError(
                f'{both[0]} is a default site of {by_default[both[0]]} and also a site of {kind.__name__}; '
                f'put {kind.__name__}, which names its `sites`, first'
            )
        model = attach(model, options, names)
    return model


def _taken(model: nn.Module) -> set[nn.Module]:
    """Return the layers that have a re-parameterization, and all modules inside."""
    layers = [module for module in model.modules() if isinstance(module, Host | Reparameterization)]
    return {part for layer in layers for part in layer.modules()}


def _find_sites(
    model: nn.Module,
    modules: dict[str, nn.Module],
    kind: type[Reparameterization],
    sites: str | Sequence[str] | None,
) -> list[str]:
    """Return the names of the sites."""
    if sites is None:
        found = kind.default_sites(model)
        taken = _taken(model)
        names = [name for name in found if modules[name] not in taken]
        if found:
            problem = 'has a re-parameterization at all default sites'
        elif taken and issubclass(kind, BranchReparameterization):
            problem = f'{kind.no_sites(model)}, apart from layers with a re-parameterization'
        else:
            problem = kind.no_sites(model)
    elif isinstance(sites, str):
        names = [name for name in modules if re.fullmatch(sites, name)]
        problem = f'has no module whose whole name matches {sites!r}'
    elif not isinstance(sites, Sequence) or not all(isinstance(name, str) for name in sites):
        raise InputError(f'sites must be a regular expression or a sequence of names, not {sites!r}')
    else:
        names = list(dict.fromkeys(sites))
        missing = [name for name in names if name not in modules]
        problem = f'has no module named {", ".join(missing)}'
        names = [] if missing else names
    if not names:
        candidates = [name for name, module in modules.items() if name and output_channels(module)]
        shown = ', '.join(candidates[:8]) + (
            f' and {len(candidates) - 8} more' if len(candidates) > 8 else ''
        )
        raise InputError(f'{type(model).__name__} {problem}; pass sites=, for example some of {shown}')
    first = {module: name for name, module in model.named_modules()}  # a layer in several places is one site
    return list(dict.fromkeys(first[modules[name]] for name in names))


def _from_layer(kind: type[Reparameterization], name: str, layer: nn.Module, options: dict) -> nn.Module:
    """Make a re-parameterization for a layer; its errors name the layer."""
    try:
        return kind.from_layer(layer, **options)
    except InputError as error:
        raise InputError(f'{name or "the model"}: {error}') from error


def _check_site(modules: dict[str, nn.Module], kind: type[Reparameterization], name: str) -> None:
    layer = modules[name]
    if isinstance(layer, Host):
        raise InputError(f'{name} ({type(layer).__name__}) already has an {layer.reparameterization().title}')
    if 'forward' in vars(layer):  # it would hide a host's, and a replaced convolution would lose it
        raise InputError(
            f'{name} ({type(layer).__name__}) has an overridden forward; call attach before overriding it'
        )
    kind.check(name, layer)
    check_weight(name, layer)
    if issubclass(kind, BranchReparameterization):
        owners = [
            other
            for other, module in modules.items()
            if module is not layer and any(p is layer.weight for p in module._parameters.values())
        ]
        if owners:
            raise InputError(f'{name} shares its weight with {owners[0]}, which branches would separate')
        if any(hooks for key, hooks in vars(layer).items() if 'state_dict' in key and key.endswith('hooks')):
            raise InputError(
                f'{name} ({type(layer).__name__}) has hooks for its state dict, which has other names with '
                'branches; remove them first'
            )
    if not FUSED_PATH_RESPECTS_HOOKS and issubclass(kind, ParameterReparameterization):
        encoders = [module for module in modules.values() if isinstance(module, nn.TransformerEncoderLayer)]
        if any(layer in encoder.modules() for encoder in encoders):
            raise InputError(
                f'{name} is in an nn.TransformerEncoderLayer, whose fused path ignores it before torch 2.5; '
                'use a newer torch, or other sites'
            )
    around = next(
        (outer for outer in modules if name.startswith(f'{outer}.') and merges_itself(modules[outer])), None
    )
    if around and issubclass(kind, BranchReparameterization):
        kind_around = type(modules[around]).__name__
        raise InputError(f'{name} is in {around} ({kind_around}), which merges its own layers')
