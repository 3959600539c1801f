"""Detect hosts that were removed from their network without being folded. Needs torch only.

Code that fuses convolutions with their normalizations, or freezes these, reads the parameters of a host,
which lack the scale, and replaces the host. Reading cannot be told from initializing, copying or counting,
but the removal is visible.
"""

from collections import Counter

from torch import nn

from ..errors import InputError
from .compat import is_compiling
from .host import Host


def guard_hosts(model: nn.Module, names: list[str]) -> None:
    """Record the hosts of a network, for :func:`check_hosts_present` in every forward pass.

    Args:
        model (nn.Module): The network.
        names (list[str]): Names of hosts in it. The network itself may be one; nothing can remove that.
    """
    guarded = model.__dict__.setdefault(
        '_guarded_hosts', {}
    )  # part of copies and pickles, not of the state dict
    for name in filter(None, names):
        guarded[name] = _ancestors(model, name), model.get_submodule(name)
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
                f'{name} was removed from {type(model).__name__} with its '
                f'{host.reparameterization().title}, which is '
                'not folded, so the network computes something else; call mmasr.fold before fusing, '
                'freezing or '
                'replacing layers'
            )


def _ancestors(model: nn.Module, name: str) -> list[tuple[str, frozenset[str]]]:
    """Return the class and the names of the children of every module around a host, as far as they exist."""
    found, module = [], model
    for part in name.split('.'):
        children = frozenset(child for child, value in module._modules.items() if value is not None)
        found.append((type(module).__name__, children))
        module = module._modules.get(part)
        if module is None:
            break
    return found


def _is_gone(
    model: nn.Module, name: str, ancestors: list[tuple[str, frozenset[str]]], host: nn.Module
) -> bool:
    """Return whether a host that is not folded left its place, and something else took it.

    It may be cut off with a part of the network. But if a module around it has another class, or children
    that it did not have, it was merged into these.
    """
    try:
        now = model.get_submodule(name)
    except AttributeError:
        now = None
    if now is host or isinstance(now, Host) or not isinstance(host, Host):
        return False
    if now is not None:
        return True
    remaining = _ancestors(model, name)
    last = len(remaining) - 1
    if remaining[last][0] != ancestors[last][0]:
        # Another module, unless a list lost items and was renumbered.
        return last == 0 or ancestors[last - 1][1] <= remaining[last - 1][1]
    has_new_children = not remaining[last][1] <= ancestors[last][1]
    return has_new_children or len(remaining) == len(ancestors)


def remove_guard(model: nn.Module) -> None:
    """Undo :func:`guard_hosts` for a network and all modules in it."""
    for module in model.modules():
        if module.__dict__.pop('_guarded_hosts', None):
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is check_hosts_present:
                    del module._forward_pre_hooks[key]
