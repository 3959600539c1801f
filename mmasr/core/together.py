"""What the layers of a network compute from their children is computed together, before each of its forward passes in training.
Needs torch only.

A layer alone takes a dozen small operations; launching them is what takes time, not what is in them. All layers of a network
that are alike take as many together.
"""

import weakref

import torch
from torch import nn
from torch.jit import is_tracing

from .host import Host, going_on
from .versions import SEES_THE_PASS, is_compiling


class _Pass:
    """A forward pass that is going on, and the tensors that are computed for it when a host first asks. It holds nothing of the
    network.

    They are for what runs as the pass itself does. Where gradients are off, or another has its hooks on the tensors that
    autograd saves, activation checkpointing is at work: it runs a part of the network once again, when the pass is over, and
    expects to see what it saw. Another stream of a GPU may be ahead of what is computed.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = weakref.ref(network)
        self.situation = _situation()
        self.computed: weakref.WeakKeyDictionary | None = None

    def tensors(self, host: Host) -> dict[str, torch.Tensor] | None:
        """What a host runs with, None if it is to compute that itself."""
        if _situation() != self.situation:
            return None
        if self.computed is None:  # a GPU has begun with what comes before the first host by then
            self.computed = weakref.WeakKeyDictionary(_compute(self.network()))
        return self.computed.get(host)


def _situation() -> tuple:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    stream = torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice()) if torch.cuda.is_initialized() else None
    return torch.is_grad_enabled(), hooks, torch._C._functorch.maybe_current_level(), stream


def _compute(network: nn.Module) -> dict[nn.Module, dict[str, torch.Tensor]]:
    kinds: dict[type, dict[Host, None]] = {}
    modules = [network]
    for module in modules:  # in a fifth of the time of network.modules(), which gives them names
        modules += [child for child in module._modules.values() if child is not None]
        if isinstance(module, Host):
            kinds.setdefault(type(module.computed()), {})[module] = None
    computed = {}
    for kind, hosts in kinds.items():
        if 'together' in vars(kind):  # what a subclass computes may be something else
            computed.update(kind.together([*hosts]))
    return computed


def compute_together(network: nn.Module) -> None:
    """Have what the hosts in a network compute be computed together whenever the network runs in training.

    What :meth:`mmasr.core.computed.Computed.together` leaves out, and every host that runs at another time or in another way,
    computes its own, with the same result up to rounding. In eval mode all do: that is what folding writes.

    A pass ends with the network's forward, an error in it included. Of one that the process itself is interrupted in
    (``KeyboardInterrupt``) the tensors are left to parts of the network that are trained alone, until it runs again.

    Before torch 2.8, which can't tell what a pass runs under, every host always computes its own.

    Args:
        network (nn.Module): The network; its hosts are looked for whenever it runs.
    """
    if SEES_THE_PASS and not isinstance(network, Host) and _begin not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_begin)
        network.register_forward_hook(_end, always_call=True)


def _begin(network: nn.Module, args: tuple) -> None:
    if is_compiling() or is_tracing():  # the graph would outlive the pass
        return
    _end(network)
    if network.training and torch.is_grad_enabled() and not getattr(network, '_is_replica', False):  # of DataParallel
        going_on.passes.append(_Pass(network))


def _end(network: nn.Module, args: tuple = (), output: object = None) -> None:
    if is_compiling():
        return
    for position, one in enumerate(going_on.passes):
        if one.network() is network:
            del going_on.passes[position:]  # with those in it that were interrupted
            return


def compute_apart(model: nn.Module) -> None:
    """Leave nothing of :func:`compute_together` in a network and what is in it."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_begin, _end)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
