"""Keep what was computed from a module's parameters for as long as they hold the same values. Needs torch only.

A version counter tells of every write that autograd sees. Two kinds of writes it does not see, and both are common: through
``parameter.data``, as the EMA hook of mmengine swaps weights, and by fused optimizers. Those are watched for here.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_last_edit = object()  # another object after every write that has no version
_kept: weakref.WeakKeyDictionary[nn.Module, tuple['_State', Any]] = weakref.WeakKeyDictionary()


def _note_edit(*_) -> None:
    global _last_edit
    _last_edit = object()


register_optimizer_step_post_hook(_note_edit)


class _Watched(nn.Parameter):
    """The class of a parameter while something computed from it is kept: tells when somebody reaches for its ``data``."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> torch.Tensor:
        _note_edit()
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        _note_edit()
        torch.Tensor.data.__set__(self, value)

    # Copies and pickles are of the ordinary class.
    def __deepcopy__(self, memo: dict) -> nn.Parameter:
        return copy.deepcopy(self._unwatched(), memo)

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self._unwatched().__reduce_ex__(protocol)

    def _unwatched(self) -> nn.Parameter:
        _note_edit()
        self.__class__ = nn.Parameter
        return self


class _State:
    """The parameters, buffers and children that a module has, and what they hold.

    Raises:
        TypeError: If it can't be told when one of them changes, or results must not outlive what is going on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.last_edit = _last_edit
        self.children = list(module.modules())[1:]  # not the module itself, which must be free to go
        if any(child.training for child in self.children):
            raise TypeError('a module in training may compute something else every time')
        tables = (table for m in (module, *self.children) for table in (m._modules, m._parameters, m._buffers))
        self.tables = [table for table in tables if table]
        self.tensors = [value for table in self.tables for value in table.values() if isinstance(value, torch.Tensor)]
        for tensor in self.tensors:
            if type(tensor) not in (nn.Parameter, _Watched, torch.Tensor) or tensor.is_inference():
                raise TypeError(f'a {type(tensor).__name__} without a version')
            if type(tensor) is nn.Parameter:
                tensor.__class__ = _Watched
        if not any(m._parameters for m in (module, *self.children)):
            raise TypeError('a replica of DataParallel has tensors in place of parameters')
        # Aliases keep the memory from being given to others, should a tensor leave it.
        self.aliases = [tensor.detach() for tensor in self.tensors]
        self.content = self._content()
        device = self.tensors[0].device
        self.cuda_device = device if device.type == 'cuda' else None
        # What one stream has computed may not be ready for another.
        self.stream = self.cuda_device and torch.cuda.current_stream(device)
        if self._capturing():
            raise TypeError('a CUDA graph holds on to the memory')

    def _content(self) -> list[int]:
        found = [id(value) for table in self.tables for value in table.values()]
        found += [child.training for child in self.children]
        found += [tensor._version for tensor in self.tensors]
        found += [tensor.data_ptr() for tensor in self.tensors]
        return found

    def _capturing(self) -> bool:
        return self.cuda_device is not None and torch.cuda.is_current_stream_capturing()

    def holds(self) -> bool:
        """Whether everything is as it was."""
        if self.last_edit is not _last_edit or self._capturing():
            return False
        if self.cuda_device and torch.cuda.current_stream(self.cuda_device) != self.stream:
            return False
        return self._content() == self.content


def reuse(module: nn.Module, compute: Callable[[], Any]) -> Any:
    """The result of a computation on a module's parameters and buffers, computed again only if they may have changed.

    Results are kept in eval mode without gradients only, and not in graphs that outlive the call: those of ``torch.compile``,
    ``torch.jit.trace`` and CUDA contain the computation itself. What nobody can see is a write through an alias without a
    version (``parameter.data``, ``.numpy()``) that was taken before the result was computed.

    Args:
        module (nn.Module): What the result depends on.
        compute (callable): Computes the result from the module and nothing else.

    Returns:
        Any: The result, which must not be changed.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return compute()
    if torch.is_grad_enabled():
        forget(module)
        return compute()
    state, result = _kept.get(module, (None, None))
    if state is None or not state.holds():
        try:
            state = _State(module)  # before computing, so that a change meanwhile is noticed
        except TypeError:
            return compute()
        result = compute()
        _kept[module] = state, result
    return result


def forget(module: nn.Module) -> None:
    """Let the next :func:`reuse` of a module compute; until then its parameters have their ordinary class.

    Args:
        module (nn.Module): The module.
    """
    state, _ = _kept.pop(module, (None, None))
    for tensor in state.tensors if state else ():
        if type(tensor) is _Watched:
            tensor._unwatched()
