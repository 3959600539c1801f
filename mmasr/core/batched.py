"""Compute the effective parameters of all hosts in one batch per training forward pass. Needs torch only.

One layer needs a dozen small operations, and launching these takes more time than computing them. All layers
of a network with the same structure need as many together.
"""

import functools
import weakref
from collections.abc import Iterator
from itertools import chain, starmap
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn
from torch.jit import is_tracing

from .class_lookup import lookup_by_class
from .compat import CAN_BATCH, functorch_level, is_compiling
from .eval_cache import invalidate
from .host import Host, active_passes


class _Pass:
    """A forward pass, and the effective parameters computed for it when the first host asks for its own.

    They are valid only where the pass itself runs. With gradients off, or other hooks on the tensors that
    autograd saves, activation checkpointing is active: it repeats a part of the network after the pass, and
    expects to see the same tensors again. Another CUDA stream may be ahead of the computation.

    It holds no reference to the network or its modules.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = weakref.ref(network)
        self.context = _context()
        self.computed: dict[weakref.ref, dict[str, torch.Tensor] | None] | None = None

    def effective_parameters(self, host: Host) -> dict[str, torch.Tensor] | None:
        """Return the effective parameters of a host; None if it has to compute them itself."""
        network = self.network()
        if network is None or _context() != self.context:
            return None
        if self.computed is None:  # by now a GPU works on the layers before the first host
            self.computed = _compute(network)
        key = weakref.ref(host)
        if key not in self.computed:
            if any(module is host for module in network.modules()):
                network.__dict__['_batches'] = None  # the next pass finds it
            self.computed[key] = None
        if (parameters := self.computed[key]) is not None:
            invalidate(host)  # as every forward pass with gradients does
        return parameters


def _context() -> tuple:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    stream = (
        torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
        if torch.cuda.is_initialized()
        else None
    )
    return torch.is_grad_enabled(), hooks, functorch_level(), stream


class _Batches:
    """The hosts of a network that are computed together: found once, and kept until the network changes.

    Every pass compares what the prepared computations may depend on:

    - the modules from the network down to the hosts and inside them, and their classes
    - the parameters and buffers inside the hosts, their dtype, device, shape and ``requires_grad``
    - the hooks and the attributes of modules inside the hosts; of torch's own layers, only additional
      attributes, such as an overridden ``forward``

    A new host elsewhere is noticed when it asks for its parameters.

    It holds no reference to the network itself. Copies and pickles of a network contain None instead.
    """

    def __init__(self, network: nn.Module) -> None:
        paths = dict(_find_hosts(network, ()))
        inside = [*dict.fromkeys(module for host in paths for module in host.modules() if module is not host)]
        self.modules = [*dict.fromkeys([*chain.from_iterable(paths.values()), *inside])]
        parameters = [module._parameters for module in (*paths, *inside)]
        buffers = [module._buffers for module in inside]
        self.tensors = [
            tensor for table in (*parameters, *buffers) for tensor in table.values() if tensor is not None
        ]
        modules = [module._modules for module in (network, *self.modules)]
        self.tables = [*modules, *parameters, *buffers]
        own = [vars(module) for module in inside if not type(module).__module__.startswith('torch.')]
        self.attributes = [(table, name) for table in own for name in table if name not in _INTERNAL]
        hooks = [table for module in inside for table in (module._forward_hooks, module._forward_pre_hooks)]
        self.sized = [*map(vars, inside), *hooks]
        self.values, self.state = self._values(), self._state()
        #: Whether it may outlive the pass. Tensors in place of parameters, as in ``functional_call``, do not.
        self.lasting = all(
            isinstance(value, nn.Parameter | None) for table in parameters for value in table.values()
        )
        groups: dict[tuple, list[Host]] = {}
        for host in paths:
            kind = type(host.reparameterization())
            # A subclass may compute something else.
            key = kind.batch_key(host) if 'batch_key' in vars(kind) else None
            if key is not None:
                groups.setdefault((kind, key), []).append(host)
        self.computations = [
            kind.prepare_batch(group) for (kind, _), group in groups.items() if len(group) > 1
        ]
        #: All hosts, also those that compute their own parameters.
        self.hosts = [weakref.ref(module) for module in network.modules() if isinstance(module, Host)]

    def __reduce__(self) -> tuple:
        return type(None), ()

    def _values(self) -> list[Any]:
        attributes = starmap(dict.get, self.attributes)
        return [*chain.from_iterable(map(dict.values, self.tables)), *attributes]

    def _state(self) -> list[Any]:
        return [*map(len, self.sized), *map(type, self.modules), *map(_ATTRIBUTES, self.tensors)]

    def is_current(self) -> bool:
        """Return whether nothing has changed."""
        values = self._values()  # tensors cannot be compared by ==
        return (
            len(values) == len(self.values)
            and all(map(is_, values, self.values))
            and self._state() == self.state
        )

    def compute(self) -> dict[weakref.ref, dict[str, torch.Tensor] | None]:
        """Compute the effective parameters of the hosts; None for hosts that compute their own."""
        computed = dict.fromkeys(self.hosts)
        for compute in self.computations:
            computed.update((weakref.ref(host), found) for host, found in compute().items())
        return computed


_ATTRIBUTES = attrgetter('dtype', 'device', 'shape', 'requires_grad')

#: Attributes that every module has. Most never change, and the tables among them are compared by content.
_INTERNAL = vars(nn.Module()).keys() - {'training'}


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module._modules.values() if child is not None]


def _find_hosts(module: nn.Module, path: tuple) -> Iterator[tuple[Host, tuple]]:
    """Yield the hosts in a module, each with the modules from there to it.

    Units of FSDP are left out: their parameters are still sharded, and their hosts compute their own.
    """
    for child in _children(module):
        if not _is_sharded_unit(type(child)):
            if isinstance(child, Host):
                yield child, (*path, child)
            yield from _find_hosts(child, (*path, child))


def _compute(network: nn.Module) -> dict[weakref.ref, dict[str, torch.Tensor] | None]:
    batches = network.__dict__.get('_batches')
    if batches is None or not batches.is_current():
        batches = _Batches(network)
        network.__dict__['_batches'] = batches if batches.lasting else None
    return batches.compute()


@functools.cache
def _is_sharded_unit(cls: type[nn.Module]) -> bool:
    """Return whether modules of a class are units of FSDP, which gathers their parameters when they run."""
    units = {'torch.FSDPModule': True, 'torch.FullyShardedDataParallel': True}
    return lookup_by_class(units, cls) is not None


def enable_batching(network: nn.Module) -> None:
    """Enable batched computation of the effective parameters of a network's hosts, in training.

    Hosts whose :meth:`batch_key <mmasr.core.reparameterization.ParameterReparameterization.batch_key>` is
    None or unique, and hosts that run at another time or in another context, compute their own, with the same
    result up to rounding. In eval mode all hosts do, as folding does.

    A pass ends with the network's forward, even if that raises an error. If the process is interrupted in a
    pass (``KeyboardInterrupt``), parts of the network that are trained alone use its tensors until the
    network runs again.

    Before torch 2.8, which cannot tell the context of a pass, every host always computes its own.

    Args:
        network (nn.Module): The network. Changes in it are noticed in the next pass.
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
        kept = [active for active in active_passes.passes if active.network() is not None]
        active_passes.passes = [*kept, _Pass(network)]


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
        module.__dict__.pop('_batches', None)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_begin, _end)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
