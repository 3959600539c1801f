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
from .merge import can_merge, is_foreign, merge
from .plugin_folding import Plugin, find_plugins
from .removal_guard import check_hosts_present, remove_guard
from .reparameterization import ParameterReparameterization, Reparameterization
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

    def without_stock_bias(self, stay: Collection[str] = ()) -> list[str]:
        """Return the names of the branches of mmasr that merge into a layer with a bias, but replaced none.

        Args:
            stay (Collection[str]): Names of modules whose branches are not merged. Default: none.
        """
        return [
            name
            for name, module in self.branches.items()
            if isinstance(module, Reparameterization) and not module.stock_bias and name not in stay
        ]

    def reparameterizations(self) -> dict[str, ParameterReparameterization]:
        """Return the re-parameterizations of hosts and plugins, by the name of the host or plugin."""
        found = {name: plugin.asr for name, plugin in self.plugins.items()}
        found.update({name: host.reparameterization() for name, host in self.hosts.items()})
        return {name: found[name] for name in self.names() if name in found}


def find_foldable(model: nn.Module, stay: Collection[str] = ()) -> Foldable:
    """Find what :func:`fold_all` folds in a network.

    Args:
        model (nn.Module): Any network.
        stay (Collection[str]): Names of blocks of other libraries that are not merged; those inside them may
            be. Default: none.

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
        branches=_find_branches(model, stay),
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


def _find_branches(model: nn.Module, stay: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules whose branches merge; a block of another library merges those inside itself."""
    found, inside = {}, set()
    for name, module in model.named_modules():  # outer modules first
        if not can_merge(module):
            continue
        if is_foreign(module):
            if name in stay or module in inside:
                continue
            inside.update(module.modules())
        found[name] = module
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
    found = find_foldable(model, stay)  # raises before anything is changed
    kept = {module for name, module in model.named_modules(remove_duplicate=False) if name in stay}
    branches = {*found.branches.values()} - kept
    remove_guard(model)
    disable_batching(model)
    _separate(model, [*found.hosts.values(), *(plugin.norm for plugin in found.plugins.values())])
    for plugin in found.plugins.values():
        plugin.fold()
    for host in found.hosts.values():
        host.fold()
    merged: dict[nn.Module, nn.Module] = {}  # a module may be in several places
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):  # inner modules first
        if module in branches and module not in merged:
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
