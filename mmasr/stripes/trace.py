"""Record what a network computes in one run: functions, modules, and the tensors between them.

Only Python's calls of torch are seen. What runs inside TorchScript or a custom ``autograd.Function`` is not,
so whatever is concluded from a trace is checked by running the network. Needs torch only.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core.differences import tensors


@dataclasses.dataclass(eq=False)
class Call:
    """A call of a function or a module.

    Values are numbered in the order in which they come into being; a tensor that is changed in place becomes
    a new value.

    Attributes:
        name (str): Name of the function, or of the module in the network.
        module (nn.Module, optional): The module; None for a function.
        inputs (list[int]): Values of the tensors among its arguments.
        outputs (list[int]): Values of the tensors that it returns.
        args (tuple): Its positional arguments. The tensors may have changed in place since.
        kwargs (dict): Its keyword arguments.
        outer (Call, optional): Call of the module that makes this call; None for the outermost one.
        function (callable, optional): The function; None for a module.
    """

    name: str
    module: nn.Module | None
    inputs: list[int]
    args: tuple
    kwargs: dict[str, Any]
    outer: 'Call | None'
    function: Callable | None = None
    outputs: list[int] = dataclasses.field(default_factory=list)

    def owners(self) -> Iterator['Call']:
        """Yield the calls of modules around it, the innermost first."""
        call = self.outer
        while call is not None:
            yield call
            call = call.outer


class Trace(TorchFunctionMode):
    """Recorder of one run of a network, as a context.

    Args:
        model (nn.Module): The network.
        observe (callable, optional): Called after every function with its :class:`Call` and its output, while
            its arguments still have their values. Default: none.

    Attributes:
        calls (list[Call]): Calls of functions that return tensors, and of modules, in the order in which they
            end.
        shapes (list[torch.Size]): Shape of every value.
    """

    def __init__(self, model: nn.Module, observe: Callable[[Call, Any], None] | None = None) -> None:
        super().__init__()
        self.model = model
        self.observe = observe
        self.calls: list[Call] = []
        self.shapes: list[torch.Size] = []
        self._values: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no other tensor gets the id of one that was freed
        self._stack: list[Call] = []
        self._handles: list = []

    def __enter__(self) -> 'Trace':
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True, prepend=True),
                module.register_forward_hook(self._after, with_kwargs=True),
            ]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._alive.clear()
        return super().__exit__(*error)

    def value(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor's value; a tensor that is new here gets one."""
        if id(tensor) not in self._values:
            self._new(tensor)
        return self._values[id(tensor)]

    def _new(self, tensor: torch.Tensor) -> int:
        self._values[id(tensor)] = len(self.shapes)
        self._alive.append(tensor)
        self.shapes.append(tensor.shape)
        return self._values[id(tensor)]

    def _inputs(self, args: tuple, kwargs: dict) -> list[int]:
        return [self.value(tensor) for _, tensor in tensors('', (*args, *kwargs.values()))]

    def _call(self, name: str, called: nn.Module | Callable, args: tuple, kwargs: dict) -> Call:
        outer = self._stack[-1] if self._stack else None
        module, function = (called, None) if isinstance(called, nn.Module) else (None, called)
        return Call(name, module, self._inputs(args, kwargs), args, kwargs, outer, function)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            with torch._C.DisableTorchFunction():
                self._stack.append(self._call(name, module, args, kwargs))

        return hook

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        call = self._stack.pop()
        with torch._C.DisableTorchFunction():
            call.outputs = [self.value(tensor) for _, tensor in tensors('', output)]
        self.calls.append(call)

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run a function and record it, if it returns tensors; see ``torch.overrides``."""
        kwargs = kwargs or {}
        call = self._call(getattr(function, '__name__', str(function)), function, args, kwargs)
        output = function(*args, **kwargs)
        found = [tensor for _, tensor in tensors('', output)]
        if not found or (call.name == '__get__' and all(id(tensor) in self._values for tensor in found)):
            return output
        call.outputs = [self._new(tensor) for tensor in found]
        self.calls.append(call)
        if self.observe:
            self.observe(call, output)
        return output

    def readers(self) -> dict[int, list[Call]]:
        """Return the calls that read each value: functions, and modules inside which no function is seen."""
        readers: dict[int, list[Call]] = collections.defaultdict(list)
        for call in self.calls:
            for value in set(call.inputs):
                if call.module is None or not (
                    value in call.outputs or any(call in reader.owners() for reader in readers[value])
                ):
                    readers[value].append(call)
        return readers

    def descendants(self, inputs: Collection[int] | None = None) -> set[int]:
        """Return all values that depend on the inputs of the network.

        Args:
            inputs (Collection[int], optional): Values of the inputs. Default: those of the outermost modules.
        """
        outermost = [call for call in self.calls if call.outer is None and call.module]
        found = {value for call in outermost for value in call.inputs} if inputs is None else set(inputs)
        for call in self.calls:
            if found.intersection(call.inputs):
                found.update(call.outputs)
        return found
