"""Detect hosts that were removed from their network without being folded. Needs torch only.

Code that fuses convolutions with their normalizations, or freezes these, reads the parameters of a host,
which lack the scale, and replaces the host. Reading cannot be told from initializing, copying or counting,
but the removal is visible.
"""

import functools

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
        parent = model.get_submodule(name.rpartition('.')[0])
        guarded[name] = type(parent).__name__, model.get_submodule(name)
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
    gone = [name for name, (kind, host) in guarded.items() if _is_gone(model, name, kind, host)]
    if not gone:
        return
    present = set(model.modules())  # a host may be in a wrapper, or have moved
    for name in gone:
        _, host = guarded[name]
        if host not in present:
            raise InputError(
                f'{name} was removed from {type(model).__name__} with its '
                f'{host.reparameterization().title}, which is '
                'not folded, so the network computes something else; call mmasr.fold before fusing, '
                'freezing or '
                'replacing layers'
            )


def _is_gone(model: nn.Module, name: str, kind: str, host: nn.Module) -> bool:
    """Return whether a host that is not folded left its place in a parent of a certain class."""
    *path, child = name.split('.')
    try:
        parent = functools.reduce(lambda module, part: module._modules[part], path, model)
        now = parent._modules.get(child)
    except (KeyError, AttributeError):  # its parent is gone as well, or is None
        return False
    if now is host or isinstance(now, Host) or not isinstance(host, Host):
        return False
    return now is not None or type(parent).__name__ == kind


def remove_guard(model: nn.Module) -> None:
    """Undo :func:`guard_hosts` for a network and all modules in it."""
    for module in model.modules():
        if module.__dict__.pop('_guarded_hosts', None):
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is check_hosts_present:
                    del module._forward_pre_hooks[key]
