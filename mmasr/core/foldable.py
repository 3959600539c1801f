"""Find everything in a network that folding changes, and fold it. Needs torch only."""

import dataclasses
from collections import Counter
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
from .scaling import check_weight, output_layers


@dataclasses.dataclass
class Foldable:
    """Everything in a network that :func:`fold_all` folds, by name in the network.

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
    """Find what :func:`fold_all` folds in a network.

    Args:
        model (nn.Module): Any network.

    Returns:
        Foldable: What was found.

    Raises:
        InputError: If something cannot be folded; see :func:`mmasr.core.fold.fold`.
    """
    for module in model.modules():
        check_hosts_present(module)
    found = Foldable(
        hosts={name: module for name, module in model.named_modules() if isinstance(module, Host)},
        plugins=find_plugins(model),
        branches={name: module for name, module in model.named_modules() if can_merge(module)},
    )
    for name, host in found.hosts.items():
        check_weight(name, host)
        host.reparameterization().check(name, host)
    used = {part for child in found.reparameterizations().values() for part in child.modules()}
    for name, module in model.named_modules():
        if isinstance(module, ParameterReparameterization) and module not in used:
            where = name or 'the model'
            raise InputError(f"{where} can't be folded: no layer has it as its {module.title}")
    return found


@torch.no_grad()
def fold_all(model: nn.Module, stay: Collection[str] = ()) -> nn.Module:
    """Fold a network in place, without verifying it; see :func:`mmasr.core.fold.fold`.

    Args:
        model (nn.Module): A network or a single layer.
        stay (Collection[str]): Names of modules whose branches are not merged. Default: none.

    Returns:
        nn.Module: ``model``; or the merged layer, if ``model`` itself is a module with branches.

    Raises:
        InputError: If an ASR cannot be folded. The model is then unchanged.
    """
    found = find_foldable(model)  # raises before anything is changed
    remove_guard(model)
    disable_batching(model)
    _separate(model, [*found.hosts.values(), *(plugin.norm for plugin in found.plugins.values())])
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


def _separate(model: nn.Module, layers: Collection[nn.Module]) -> None:
    """Give layers that are about to be scaled parameters that no other layer has."""
    owners = Counter(
        parameter
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    for layer in layers:
        for part in output_layers(layer).values():
            for name, parameter in part._parameters.items():
                if owners[parameter] > 1:
                    setattr(part, name, nn.Parameter(parameter.data.clone(), parameter.requires_grad))
