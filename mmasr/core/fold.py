"""Fold all re-parameterization of a network into stock layers. Needs torch only."""

import dataclasses
from collections.abc import Collection

import torch
from torch import nn

from ..errors import InputError
from .batched import disable_batching
from .class_surgery import replace_module, restore_classes
from .host import Host
from .merge import can_merge, merge
from .plugin_folding import Plugin, find_plugins
from .removal_guard import check_hosts_present, remove_guard
from .reparameterization import ParameterReparameterization


@dataclasses.dataclass
class Foldable:
    """Everything in a network that :func:`fold` folds, by name in the network.

    Attributes:
        hosts (dict[str, Host]): Layers with effective parameters.
        plugins (dict[str, Plugin]): ASRs that are plugins of OpenMMLab blocks.
        branches (dict[str, nn.Module]): Modules whose branches merge. One that carries an ASR is a host as
            well.
    """

    hosts: dict[str, Host]
    plugins: dict[str, Plugin]
    branches: dict[str, nn.Module]

    def __bool__(self) -> bool:
        return bool(self.hosts or self.plugins or self.branches)

    def names(self) -> list[str]:
        """Return the names of everything that is folded, each once."""
        return list(dict.fromkeys([*self.branches, *self.plugins, *self.hosts]))

    def reparameterizations(self) -> dict[str, ParameterReparameterization]:
        """Return the re-parameterizations of hosts and plugins, by the name of the host or plugin."""
        found = {name: plugin.asr for name, plugin in self.plugins.items()}
        found.update({name: host.reparameterization() for name, host in self.hosts.items()})
        return {name: found[name] for name in self.names() if name in found}


def find_foldable(model: nn.Module) -> Foldable:
    """Find what :func:`fold` would fold in a network.

    Args:
        model (nn.Module): Any network.

    Returns:
        Foldable: What was found.

    Raises:
        InputError: If something cannot be folded; see :func:`fold`.
    """
    for module in model.modules():
        check_hosts_present(module)
    found = Foldable(
        hosts={name: module for name, module in model.named_modules() if isinstance(module, Host)},
        plugins=find_plugins(model),
        branches={name: module for name, module in model.named_modules() if can_merge(module)},
    )
    for name, host in found.hosts.items():
        host.reparameterization().check(name, host)
    used = {part for child in found.reparameterizations().values() for part in child.modules()}
    for name, module in model.named_modules():
        if isinstance(module, ParameterReparameterization) and module not in used:
            where = name or 'the model'
            raise InputError(f"{where} can't be folded: no layer has it as its {module.title}")
    return found


@torch.no_grad()
def fold(model: nn.Module, stay: Collection[str] = ()) -> nn.Module:
    """Fold all re-parameterization of a network into stock layers, in place.

    - A host, such as a layer with an ASR, gets its effective parameters written into it, and its stock class
      back.
    - An ASR that is a plugin of an OpenMMLab block is folded into the normalization before it.
    - A module with branches, such as an ACNet or a RepVGG block, merges into one convolution. This is a stock
      layer unless its kernel depends on the input.

    In eval mode the network computes the same as before, up to rounding. Attention that depends on the image
    stays.

    Args:
        model (nn.Module): A network or a single layer. One with nothing to fold stays as it is.
        stay (Collection[str]): Names of modules whose branches are not merged. Default: none.

    Returns:
        nn.Module: ``model``; or the merged layer, if ``model`` itself is a module with branches.

    Raises:
        InputError: If an ASR cannot be folded: it is neither in a host nor a plugin; it was removed from the
            network with its layer; it comes after attention that depends on the image; its scale is negative
            after a ReLU; or its layer has no parameter to take the scale. The model is then unchanged.

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
    found = find_foldable(model)  # raises before anything is changed
    remove_guard(model)
    disable_batching(model)
    for plugin in found.plugins.values():
        plugin.fold()
    for host in found.hosts.values():
        host.fold()
    merged: dict[nn.Module, nn.Module] = {}  # a module may be in several places
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):  # inner modules first
        if module not in merged and can_merge(module) and name not in stay:
            merged[module] = merge(module)
        if module in merged:
            model = replace_module(model, name, merged[module])
    restore_classes(model)
    return model
