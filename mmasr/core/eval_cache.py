"""Cache of effective parameters in eval mode. Needs torch only."""

from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import is_grad_enabled, nn
from torch.jit import is_tracing

from .compat import is_compiling

_version = attrgetter('_version')


class _State:
    """State that a cached result depends on: a module's own parameters, its children, and everything in them.

    The module's own buffers (running statistics) do not count. Nothing is computed from them, and each tensor
    costs time in every forward pass.

    Raises:
        TypeError: If changes cannot be detected, or the result must not outlive the current operation.
    """

    def __init__(self, module: nn.Module) -> None:
        children = list(module.modules())[1:]
        tables = [
            table for child in children for table in (child._parameters, child._buffers, child._modules)
        ]
        # No reference to the module itself, which must stay collectable.
        self.tables = [table for table in (module._parameters, module._modules, *tables) if table]
        self.tensors = [
            value for table in self.tables for value in table.values() if isinstance(value, torch.Tensor)
        ]
        if any(child.training for child in children):
            raise TypeError('a module in training mode may compute something else every time')
        if not any(isinstance(tensor, nn.Parameter) for tensor in self.tensors):
            raise TypeError('a DataParallel replica has tensors in place of parameters')
        if any(
            type(tensor) not in (nn.Parameter, torch.Tensor) or tensor.is_inference()
            for tensor in self.tensors
        ):
            raise TypeError('a tensor without a version')
        # Aliases keep the memory from being reused if a module drops one of the tensors.
        self.aliases = [tensor.detach() for tensor in self.tensors]
        device = self.tensors[0].device
        self.cuda = device.index if device.type == 'cuda' else None
        self.content = self.now()
        if self.content is None:
            raise TypeError('a CUDA graph keeps using the memory')

    def now(self) -> list[Any] | None:
        """Return a fingerprint: equal until something writes where autograd sees it; None in a CUDA graph."""
        found = [*map(id, chain.from_iterable(map(dict.values, self.tables)))]
        found += map(_version, self.tensors)
        found += map(torch.Tensor.data_ptr, self.tensors)
        if self.cuda is not None:
            if torch.cuda.is_current_stream_capturing():
                return None
            # A result may not be ready for another stream. torch.cuda.current_stream takes as long as all of
            # the above.
            found.append(torch._C._cuda_getCurrentRawStream(self.cuda))
        return found


def cached(module: nn.Module, compute: Callable[[], Any]) -> Any:
    """Compute a result from a module's parameters; in eval mode without gradients only once.

    It is computed again after :func:`invalidate` (which a module calls in ``train``, ``eval`` and
    ``_apply``), after a forward pass with gradients, and when something that it depends on was exchanged or
    written where autograd sees it. While compiling, tracing or capturing a CUDA graph nothing is cached: the
    graph contains the computation.

    Not detected: writes that bypass autograd's version counter (``parameter.data``, fused optimizers) between
    two forward passes in eval mode without a call of ``train()`` or ``eval()`` in between; and such a call
    on a child alone.

    Args:
        module (nn.Module): The module. The result depends on its own parameters and on its children.
        compute (callable): Computes the result from these and nothing else.

    Returns:
        Any: The result, which must not be modified.
    """
    if is_compiling() or is_tracing():
        return compute()
    if module.training or is_grad_enabled():
        invalidate(module)
        return compute()
    owner, state, result = module.__dict__.get('_eval_cache', (None, None, None))
    # A DataParallel replica has the cache of its original.
    if owner != id(module) or state.now() != state.content:
        try:
            state = _State(module)  # before computing, so that a concurrent change is noticed
        except TypeError:
            return compute()
        result = compute()
        module.__dict__['_eval_cache'] = id(module), state, result
    return result


def invalidate(module: nn.Module) -> None:
    """Make the next :func:`cached` of a module compute its result again."""
    module.__dict__.pop('_eval_cache', None)


def without_cache(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a module without its cache, for copies and pickles."""
    return {name: value for name, value in state.items() if name != '_eval_cache'}
