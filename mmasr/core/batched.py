"""Compute the effective parameters of all hosts in one batch per training forward pass. Needs torch only.

One layer needs a dozen small operations, and launching these takes more time than computing them. All layers
of a network with the same structure need as many together.
"""

import functools
import weakref

import torch
from torch import nn
from torch.jit import is_tracing

from .class_lookup import lookup_by_class
from .compat import CAN_BATCH, functorch_level, is_compiling
from .host import Host, active_passes


class _Pass:
    """A forward pass, and the effective parameters computed for it when the first host asks for its own.

    They are valid only where the pass itself runs. With gradients off, or other hooks on the tensors that
    autograd
    saves, activation checkpointing is active: it repeats a part of the network after the pass, and expects to
        see the
    same tensors again. Another CUDA stream may be ahead of the computation.

    It holds no reference to the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = weakref.ref(network)
        self.context = _context()
        self.computed: weakref.WeakKeyDictionary | None = None

    def effective_parameters(self, host: Host) -> dict[str, torch.Tensor] | None:
        """Return the effective parameters of a host; None if it has to compute them itself."""
        if _context() != self.context:
            return None
        if self.computed is None:  # by now a GPU works on the layers before the first host
            self.computed = weakref.WeakKeyDictionary(_compute(self.network()))
        return self.computed.get(host)


def _context() -> tuple:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    stream = (
        torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
        if torch.cuda.is_initialized()
        else None
    )
    return torch.is_grad_enabled(), hooks, functorch_level(), stream


def _compute(network: nn.Module) -> dict[nn.Module, dict[str, torch.Tensor]]:
    kinds: dict[type, dict[Host, None]] = {}
    modules = [network]
    for module in modules:  # takes a fifth of the time of network.modules(), which builds names
        # The parameters of another unit are still sharded; its hosts compute their own.
        modules += [
            child
            for child in module._modules.values()
            if child is not None and not _is_sharded_unit(type(child))
        ]
        if isinstance(module, Host):
            kinds.setdefault(type(module.reparameterization()), {})[module] = None
    computed = {}
    for kind, hosts in kinds.items():
        if 'batched_effective_parameters' in vars(kind):  # a subclass may compute something else
            computed.update(kind.batched_effective_parameters([*hosts]))
    return computed


@functools.cache
def _is_sharded_unit(cls: type[nn.Module]) -> bool:
    """Return whether modules of a class are units of FSDP, which gathers their parameters when they run."""
    units = {'torch.FSDPModule': True, 'torch.FullyShardedDataParallel': True}
    return lookup_by_class(units, cls) is not None


def enable_batching(network: nn.Module) -> None:
    """Enable batched computation of the effective parameters of a network's hosts, in training.

    Hosts that :meth:`batched_effective_parameters
    <mmasr.core.reparameterization.ParameterReparameterization.batched_effective_parameters>` leaves out, and
    hosts that run at another time or in another context, compute their own, with the same result up to
    rounding. In eval mode all hosts do, as folding does.

    A pass ends with the network's forward, even if that raises an error. If the process is interrupted in a
    pass (``KeyboardInterrupt``), parts of the network that are trained alone use its tensors until the
    network runs again.

    Before torch 2.8, which cannot tell the context of a pass, every host always computes its own.

    Args:
        network (nn.Module): The network. Its hosts are looked up in every pass.
    """
    if CAN_BATCH and not isinstance(network, Host) and _begin not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_begin)
        network.register_forward_hook(_end, always_call=True)


def _begin(network: nn.Module, args: tuple) -> None:
    if is_compiling() or is_tracing():  # the graph would outlive the pass
        return
    _end(network)
    if (
        network.training and torch.is_grad_enabled() and not getattr(network, '_is_replica', False)
    ):  # of DataParallel
        active_passes.passes.append(_Pass(network))


def _end(network: nn.Module, args: tuple = (), output: object = None) -> None:
    if is_compiling():
        return
    for position, active in enumerate(active_passes.passes):
        if active.network() is network:
            del active_passes.passes[position:]  # including interrupted passes inside it
            return


def disable_batching(model: nn.Module) -> None:
    """Undo :func:`enable_batching` for a network and all modules in it."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_begin, _end)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
