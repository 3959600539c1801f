"""A layer with an ASR that is taken out of its network without being folded is noticed. Needs torch only.

What fuses convolutions with their normalizations, or freezes these, reads a layer's own parameters, which lack the scale, and
puts something else in the layer's place. Its reading can't be told from that of initialisations, copies and counters; that the
layer is gone can.
"""

import functools

from torch import nn

from .host import Host
from .versions import is_compiling


def watch(model: nn.Module, names: list[str]) -> None:
    """Note which layers of a network are hosts, for :func:`check_watched` to look after them in every forward pass.

    Args:
        model (nn.Module): The network.
        names (list[str]): Names of hosts in it. The network itself may be one, which nothing can take out of it.
    """
    watched = model.__dict__.setdefault('_watched', {})  # in copies and pickles, but no state
    for name in filter(None, names):
        parent = model.get_submodule(name.rpartition('.')[0])
        watched[name] = type(parent).__name__, model.get_submodule(name)
    if watched and check_watched not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(check_watched)


def check_watched(model: nn.Module, args: tuple = ()) -> None:
    """Check that the hosts of a network are still there, unless they were folded or a part of the network was cut off.

    Args:
        model (nn.Module): What :func:`watch` was given, or anything else.
        args (tuple): The network's input, where this is a hook.

    Raises:
        ValueError: If one was deleted, or replaced by what is no host either.
    """
    if is_compiling():
        return
    gone = [name for name, (kind, host) in model.__dict__.get('_watched', {}).items() if _is_gone(model, name, kind, host)]
    if not gone:
        return
    present = set(model.modules())  # it may be in a wrapper, or have moved
    for name in gone:
        _, host = model._watched[name]
        if host not in present:
            raise ValueError(
                f'{name} was taken out of {type(model).__name__} with its {host.computed().title}, which is not '
                'folded, so the network computes something else; call mmasr.fold before what fuses, freezes or replaces layers'
            )


def _is_gone(model: nn.Module, name: str, kind: str, host: nn.Module) -> bool:
    """Whether a host that is not folded is no longer where it was, in a module of a class of that name."""
    *path, child = name.split('.')
    try:
        parent = functools.reduce(lambda module, part: module._modules[part], path, model)
        now = parent._modules.get(child)
    except (KeyError, AttributeError):  # the module that it was in is not there either, or is None
        return False
    if now is host or isinstance(now, Host) or not isinstance(host, Host):
        return False
    return now is not None or type(parent).__name__ == kind


def unwatch(model: nn.Module) -> None:
    """Leave nothing of :func:`watch` in a network and what is in it."""
    for module in model.modules():
        if module.__dict__.pop('_watched', None):
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is check_watched:
                    del module._forward_pre_hooks[key]
