"""Putting re-parameterization into a network. Needs torch only."""

import itertools
import re
from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .asr import ASR
from .computed import Computed
from .host import Host, become_host, fold_first
from .merge import Merging, is_merging
from .scaling import output_channels
from .surgery import replace
from .together import compute_together
from .versions import MINDS_HOOKS
from .watch import watch

#: Convolutions that train with branches, by the name that a config has for them. One of one's own is added with
#: ``CONVOLUTIONS['Mine'] = Mine``, a subclass of :class:`mmasr.core.merge.Merging` or :class:`mmasr.core.computed.Computed`.
CONVOLUTIONS: dict[str, type[Merging] | type[Computed]] = {}


def attach(
    model: nn.Module,
    attention: dict | Callable[[int], nn.Module],
    sites: str | Sequence[str] | None = None,
    **options,
) -> nn.Module:
    """Give layers of a network an ASR each, or the branches of a convolution that trains with branches, in place.

    A layer with an ASR runs with its parameters multiplied by the ASR's scale; no feature map is touched. The state dict keeps
    its names and gains ``<site>.asr.*``. :func:`mmasr.fold` makes stock layers of all of them again.

    Args:
        model (nn.Module): Any network.
        attention (dict | callable): κ of the ASR, see :class:`mmasr.ASR`; or a convolution of :data:`CONVOLUTIONS` with its
            options, such as ``dict(type='ACNet')``.
        sites (str | Sequence[str], optional): The layers: a regular expression that the whole name of a module must match,
            or a sequence of names. Default: for an ASR those of docs/method.md, in networks whose every block is known; for a
            convolution those that it says, such as all 3 x 3 convolutions.
        **options: Of an ASR ``delta``, ``psi``, ``init``, ``learnable``, ``init_identity``, see :class:`mmasr.ASR`; at the
            paper's sites of a ViT, named or not, also its defaults are the paper's, see :func:`mmasr.core.asr.for_transformer`.
            Of a convolution its own.

    Returns:
        nn.Module: ``model``; or, where the whole model is one convolution, what takes its place.

    Raises:
        ValueError: If no site is found, or a site does not exist, can't carry what is asked for or has it already. The model
            is then as it was.

    Example:
        >>> import torch, mmasr
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
        >>> mmasr.attach(model, dict(type='SE'), sites=['1'])[1].asr.scale().shape
        torch.Size([8])
        >>> mmasr.attach(model, dict(type='ACNet'), sites='0')[0].merged().kernel_size
        (3, 3)
    """
    kind, options = ASR, {'attention': attention, **options}
    if isinstance(attention, dict) and (name := str(attention.get('type')).removeprefix('mmasr.')) in CONVOLUTIONS:
        kind, options = CONVOLUTIONS[name], {**attention, **options}
        del options['type'], options['attention']
    modules = dict(model.named_modules())
    names = _find(model, modules, kind, sites)
    if kind is ASR:
        _refuse_frozen(modules, names)
    for name in names:
        _check(modules, kind, name)
    made = {name: _make(kind, name, modules[name], given) for name, given in kind.options_at(model, names, options).items()}
    for name, new in made.items():
        if isinstance(new, Computed):
            become_host(modules[name])
            setattr(modules[name], new.child, new)
        else:
            model = replace(model, name, new)
    fold_first(model)
    if issubclass(kind, Computed):
        watch(model, names)
        compute_together(model)
    return model


def _find(
    model: nn.Module, modules: dict[str, nn.Module], kind: type[Merging] | type[Computed], sites: str | Sequence[str] | None
) -> list[str]:
    """The names of the sites."""
    if sites is None:
        names = kind.sites(model)
        problem = kind.no_sites(model)
    elif isinstance(sites, str):
        names = [name for name in modules if re.fullmatch(sites, name)]
        problem = f'has no module whose whole name matches {sites!r}'
    else:
        names = list(dict.fromkeys(sites))
        missing = [name for name in names if name not in modules]
        problem = f'has no module named {", ".join(missing)}'
        names = [] if missing else names
    if not names:
        candidates = [name for name, module in modules.items() if name and output_channels(module)]
        shown = ', '.join(candidates[:8]) + (f' and {len(candidates) - 8} more' if len(candidates) > 8 else '')
        raise ValueError(f'{type(model).__name__} {problem}; pass sites=, the layers that could be named are: {shown}')
    return names


def _refuse_frozen(modules: dict[str, nn.Module], names: list[str]) -> None:
    """Refuse the normalizations by constants that torchvision, timm and Hugging Face write themselves, with the way on."""
    frozen = [name for name in names if 'FrozenBatchNorm' in type(modules[name]).__name__]
    if not frozen:
        return
    layers = [name for name, module in modules.items() if name in frozen or isinstance(module, _ConvNd)]
    before = {name: layer for layer, name in itertools.pairwise(layers) if name in frozen}
    raise ValueError(
        f'{frozen[0]} ({type(modules[frozen[0]]).__name__}) has constants and nothing to train; the convolution before '
        f'it works: pass sites={[before.get(name, name) for name in names]}'
    )


def _make(kind: type[Merging] | type[Computed], name: str, layer: nn.Module, options: dict) -> nn.Module:
    """What a layer gets, or gives way to."""
    try:
        return kind.of(layer, **options)
    except ValueError as error:
        raise ValueError(f'{name or "the model"}: {error}') from None


def _check(modules: dict[str, nn.Module], kind: type[Merging] | type[Computed], name: str) -> None:
    layer = modules[name]
    if isinstance(layer, Host):
        raise ValueError(f'{name} ({type(layer).__name__}) carries an {layer.computed().title} already')
    if 'forward' in vars(layer):  # it would hide a host's, and be gone with a convolution that is replaced
        raise ValueError(f'{name} ({type(layer).__name__}) has another forward than its class; undo that, or do it afterwards')
    kind.check(name, layer)
    if not MINDS_HOOKS and issubclass(kind, Computed):
        encoders = [module for module in modules.values() if isinstance(module, nn.TransformerEncoderLayer)]
        if any(layer in encoder.modules() for encoder in encoders):
            raise ValueError(
                f'{name} is in an nn.TransformerEncoderLayer, whose fused path leaves it out before torch 2.5; '
                'take a newer torch, or other sites'
            )
    around = next((outer for outer in modules if name.startswith(f'{outer}.') and is_merging(modules[outer])), None)
    if around and issubclass(kind, Merging):
        raise ValueError(f'{name} is in {around} ({type(modules[around]).__name__}), whose branches merge by themselves')
