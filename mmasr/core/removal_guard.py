"""Detect hosts that were removed from their network without being folded. Needs torch only.

Code that fuses convolutions with their normalizations, or freezes these, reads the parameters of a host,
which lack the scale, and replaces the host. Reading cannot be told from initializing, copying or counting,
but the removal is visible.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InputError
from .class_surgery import stock_class
from .compat import is_compiling
from .host import Host
from .merge import merges_itself

_LAYERS = _ConvNd, nn.Linear  # what branches merge into


def guard_hosts(model: nn.Module, names: list[str]) -> None:
    """Record the hosts of a network, for :func:`check_hosts_present` in every forward pass.

    Args:
        model (nn.Module): The network.
        names (list[str]): Names of hosts in it. The network itself may be one; nothing can remove that.
    """
    guarded = model.__dict__.setdefault(
        '_guarded_hosts', {}
    )  # part of copies and pickles, not of the state dict
    outers = {module: _Outer.of(module) for module in _around(model, names)}
    for name in filter(None, names):
        around = [outers[module] for module in _around(model, [name])]
        guarded[name] = around, model.get_submodule(name)
    links = {}
    for name in filter(None, names):
        module = model
        for part in name.split('.'):
            table, module = module._modules, module._modules[part]
            links[id(table), part] = table, part, module
    model.__dict__.setdefault('_guarded_links', []).extend(links.values())
    if guarded and check_hosts_present not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(check_hosts_present)


def check_hosts_present(model: nn.Module, args: tuple = ()) -> None:
    """Check that the recorded hosts of a network are still there, folded, or cut off with a part of it.

    Args:
        model (nn.Module): Any module; only a network given to :func:`guard_hosts` has recorded hosts.
        args (tuple): The network's input, if this is called as a hook.

    Raises:
        InputError: If a host was deleted, or replaced by a layer that is not a host.
    """
    if is_compiling():
        return
    # Nearly always every module on the way to a host is still in its place, which is quickly seen.
    links = model.__dict__.get('_guarded_links', ())
    if all(table.get(name) is child for table, name, child in links):
        return
    guarded = model.__dict__.get('_guarded_hosts', {})
    gone = [name for name, (ancestors, host) in guarded.items() if _is_gone(model, name, ancestors, host)]
    if not gone:
        return
    # A host may be in a wrapper, or have moved; but it must be in as many places as before.
    present = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    recorded = Counter(host for _, host in guarded.values())
    for name in gone:
        _, host = guarded[name]
        if present[host] < recorded[host]:
            raise InputError(
                f'{name} was removed from {stock_class(type(model)).__name__} with its '
                f'{host.reparameterization().title}, which is not folded, so the network computes something '
                'else; call mmasr.fold before fusing, freezing or replacing layers'
            )


@dataclasses.dataclass(frozen=True)
class _Outer:
    """A module around a host.

    Attributes:
        kind (type): Its stock class.
        children (dict[str, tuple[type, bool]]): Its children by name: stock class, and whether it has a bias.
        merges (bool): Whether it merges layers by a method of its own.
    """

    kind: type
    children: dict[str, tuple[type, bool]]
    merges: bool

    @classmethod
    def of(cls, module: nn.Module) -> '_Outer':
        children = {
            name: (stock_class(type(child)), child._parameters.get('bias') is not None)
            for name, child in module._modules.items()
            if child is not None
        }
        return cls(stock_class(type(module)), children, merges_itself(module))

    def was_merged(self, now: '_Outer') -> bool:
        """Return whether something became a new layer since then, or a layer that has a bias now."""
        layers = {
            name
            for name, child in now.children.items()
            if name in self.children and child != self.children[name] and issubclass(child[0], _LAYERS)
        }
        return bool(layers) or not now.children.keys() <= self.children.keys()


def _around(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules around some places in a network, from outside in, as far as they exist."""
    found = {}
    for name in names:
        module = model
        for part in name.split('.'):
            found[module] = None
            module = module._modules.get(part)
            if module is None:
                break
    return list(found)


def _is_gone(model: nn.Module, name: str, ancestors: list[_Outer], host: nn.Module) -> bool:
    """Return whether a host that is not folded left its place, and something else took it.

    It may be cut off with a part of the network. But it was merged if a module around it has another class,
    merges layers by a method of its own, or has children that it did not have, or that are other layers now.
    """
    try:
        now = model.get_submodule(name)
    except AttributeError:
        now = None
    if now is host or isinstance(now, Host) or not isinstance(host, Host):
        return False
    if now is not None:
        return True
    remaining = [_Outer.of(module) for module in _around(model, [name])]
    last = len(remaining) - 1
    if remaining[last].kind != ancestors[last].kind:
        # Another module, unless a list lost items and was renumbered.
        return last == 0 or ancestors[last - 1].children.keys() <= remaining[last - 1].children.keys()
    if len(remaining) == len(ancestors):
        return True
    # A network may lose a stage on purpose, even if it has a method that merges its blocks.
    merges = last > 0 and ancestors[last].merges
    return merges or ancestors[last].was_merged(remaining[last])


def remove_guard(model: nn.Module) -> None:
    """Undo :func:`guard_hosts` for a network and all modules in it."""
    for module in model.modules():
        module.__dict__.pop('_guarded_links', None)
        if module.__dict__.pop('_guarded_hosts', None):
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is check_hosts_present:
                    del module._forward_pre_hooks[key]
