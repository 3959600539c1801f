"""What a module computes from its parameters is kept while it is in eval mode. Needs torch only."""

from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import is_grad_enabled, nn
from torch.jit import is_tracing

from .versions import is_compiling

_version = attrgetter('_version')


class _State:
    """What a result depends on: a module's own parameters, its children, and all that is in these.

    The module's own buffers (running statistics) do not count: they are not computed with, and each tensor that is looked at
    takes time in every forward pass.

    Raises:
        TypeError: If it can't be told when one of them changes, or results must not outlive what is going on.
    """

    def __init__(self, module: nn.Module) -> None:
        children = list(module.modules())[1:]
        tables = [table for child in children for table in (child._parameters, child._buffers, child._modules)]
        # Not the module itself, which must be free to go.
        self.tables = [table for table in (module._parameters, module._modules, *tables) if table]
        self.tensors = [value for table in self.tables for value in table.values() if isinstance(value, torch.Tensor)]
        if any(child.training for child in children):
            raise TypeError('a module in training may compute something else every time')
        if not any(isinstance(tensor, nn.Parameter) for tensor in self.tensors):
            raise TypeError('a replica of DataParallel has tensors in place of parameters')
        if any(type(tensor) not in (nn.Parameter, torch.Tensor) or tensor.is_inference() for tensor in self.tensors):
            raise TypeError('a tensor without a version')
        # They keep the memory from being given to others, should a tensor leave it.
        self.aliases = [tensor.detach() for tensor in self.tensors]
        device = self.tensors[0].device
        self.cuda = device.index if device.type == 'cuda' else None
        self.content = self.now()
        if self.content is None:
            raise TypeError('a CUDA graph holds on to the memory')

    def now(self) -> list[Any] | None:
        """What can be told of the content: equal as long as nobody has written where autograd sees it, None in a CUDA graph."""
        found = [*map(id, chain.from_iterable(map(dict.values, self.tables)))]
        found += map(_version, self.tensors)
        found += map(torch.Tensor.data_ptr, self.tensors)
        if self.cuda is not None:
            if torch.cuda.is_current_stream_capturing():
                return None
            # What it has computed may not be ready for another. torch.cuda.current_stream takes as long as all of the above.
            found.append(torch._C._cuda_getCurrentRawStream(self.cuda))
        return found


def keep(module: nn.Module, compute: Callable[[], Any]) -> Any:
    """The result of a computation on a module's parameters, which in eval mode without gradients is done once.

    It is done again after :func:`forget` (for which a module's ``train``, ``eval`` and ``_apply`` are the places), after a
    forward pass with gradients, and when something that it depends on is another one or was written where autograd sees it.
    Nothing is kept in graphs that outlive the call: those of ``torch.compile``, ``torch.jit.trace`` and CUDA contain the
    computation itself. What it can't see is a write past autograd, through ``parameter.data`` or by a fused optimizer, between
    two forward passes in eval mode without a call of ``train()`` or ``eval()`` between them; nor such a call on a child alone.

    Args:
        module (nn.Module): The result depends on its own parameters and on what is in its children.
        compute (callable): Computes the result from these and nothing else.

    Returns:
        Any: The result, which must not be changed.
    """
    if is_compiling() or is_tracing():
        return compute()
    if module.training or is_grad_enabled():
        forget(module)
        return compute()
    owner, state, result = module.__dict__.get('_kept', (None, None, None))
    if owner != id(module) or state.now() != state.content:  # a replica of DataParallel has what its original kept
        try:
            state = _State(module)  # before computing, so that a change meanwhile is noticed
        except TypeError:
            return compute()
        result = compute()
        module.__dict__['_kept'] = id(module), state, result
    return result


def forget(module: nn.Module) -> None:
    """Let the next :func:`keep` of a module compute."""
    module.__dict__.pop('_kept', None)


def without_kept(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module that go into its copies and pickles."""
    return {name: value for name, value in state.items() if name != '_kept'}
