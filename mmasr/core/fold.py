"""Taking re-parameterization out of a network again. Needs torch only."""

from collections.abc import Collection

import torch
from torch import nn

from .computed import Computed
from .host import Host
from .merge import can_merge, merged
from .plugins import find_plugins
from .surgery import replace, restore_classes
from .together import compute_apart
from .watch import check_watched, unwatch


def find_foldable(model: nn.Module) -> dict[str, nn.Module]:
    """Find what :func:`fold` would fold in a network.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, nn.Module]: By name in the network: layers whose parameters are computed (:class:`mmasr.core.host.Host`), ASRs
        that are plugins, and modules with branches that merge.

    Raises:
        ValueError: If something can't be folded; see :func:`fold`.
    """
    for module in model.modules():
        check_watched(module)
    hosts = {name: module for name, module in model.named_modules() if isinstance(module, Host)}
    for name, host in hosts.items():
        type(host.computed()).check(name, host)
    plugins = {name: plugin.asr for name, plugin in find_plugins(model).items()}
    used = [host.computed() for host in hosts.values()] + list(plugins.values())
    used = {module for child in used for module in child.modules()}  # one may be part of another
    for name, module in model.named_modules():
        if isinstance(module, Computed) and module not in used:
            raise ValueError(f"{name or 'the model'} can't be folded: no layer has it as its {module.title}")
    merging = {name: module for name, module in model.named_modules() if can_merge(module)}
    return {**merging, **plugins, **hosts}  # a module that merges may carry an ASR, which is what there is to tell of it


@torch.no_grad()
def fold(model: nn.Module, stay: Collection[str] = ()) -> nn.Module:
    """Make stock layers of everything that is re-parameterized in a network, in place.

    A layer whose parameters are computed, such as one with an ASR, gets them written into it and its stock class back; an ASR
    that is a plugin of an OpenMMLab block folds into the normalization before it; a module with branches, such as an ACNet or
    a block of RepVGG, merges into one convolution, which is a stock layer unless its kernel depends on the input. In eval mode
    the network then computes what it did, up to rounding. Attention that depends on its input stays.

    Args:
        model (nn.Module): A network, or a single layer; one with nothing to fold is left as it is.
        stay (Collection[str]): Names of modules whose branches are not merged. Default: none.

    Returns:
        nn.Module: ``model``; or, if it is a module with branches itself, what it becomes.

    Raises:
        ValueError: If an ASR can't be folded: it is neither in a host nor a plugin, was taken out of the network with its
            layer, comes after attention that depends on the image, has a negative scale after a ReLU, or its layer has no
            parameter to take the scale. The model is then as it was.

    Example:
        >>> import torch, mmasr
        >>> bn = mmasr.attach(torch.nn.BatchNorm2d(8), dict(type='SE'), sites='').eval()
        >>> x = torch.randn(2, 8, 5, 5)
        >>> expected = bn(x)
        >>> torch.equal(mmasr.fold(bn)(x), expected)
        True
        >>> type(bn).__name__
        'BatchNorm2d'
    """
    find_foldable(model)  # raises before anything is changed
    unwatch(model)
    compute_apart(model)
    for plugin in find_plugins(model).values():
        plugin.fold()
    for module in list(model.modules()):
        if isinstance(module, Host):
            module.fold()
    became: dict[nn.Module, nn.Module] = {}  # a module may be in several places
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):  # what is inside others before them
        if module not in became and can_merge(module) and name not in stay:
            became[module] = merged(module)
        if module in became:
            model = replace(model, name, became[module])
    restore_classes(model)
    return model
