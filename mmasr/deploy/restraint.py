"""Building and running a stranger's network within the bounds that its weights set."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from mmengine.registry import Registry, registry
from mmengine.utils import get_object_from_string
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..memory import bounded_memory
from .allowed import PACKAGES, reason_against

#: What a network may have more than its checkpoint, so that the smallest one builds: parameters, modules, bytes of memory.
_PARAMETERS, _MODULES, _BYTES = 10**7, 10**4, 8 * 2**30


@contextmanager
def restrained(weights: Mapping[str, torch.Tensor], trusted: Iterable[str] = ()) -> Iterator[None]:
    """Meanwhile nothing is built that is not allowed or out of proportion to a checkpoint, not much more memory is taken, and a
    type that no registry has is not imported, as mmengine would do.

    Args:
        weights (Mapping[str, Tensor]): The checkpoint's state dict.
        trusted (Iterable[str]): Modules of which everything is allowed. Default: none.

    Raises:
        RuntimeError: Within, where any of that happens.
    """
    elements = sum(tensor.numel() for tensor in weights.values())
    left = {'elements': 4 * elements + _PARAMETERS, 'modules': 16 * len(weights) + _MODULES}

    def spend(what: str, amount: int) -> None:
        left[what] -= amount
        if left[what] < 0:
            raise RuntimeError('its network is many times larger than the weights are')

    def count_tensor(module, name, tensor):
        spend('elements', 0 if tensor is None else tensor.numel())

    def count_module(module, name, child):
        spend('modules', 1)

    def get(registry: Registry, key: str) -> object:
        found = found_by_mmengine(registry, key)
        if found is not None and (reason := reason_against(found, trusted)):
            raise RuntimeError(f'it builds {key!r}, which is not allowed: {reason}')
        return found

    found_by_mmengine = Registry.get
    with ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(count_tensor).remove)
        stack.callback(register_module_module_registration_hook(count_module).remove)
        stack.callback(setattr, registry, 'get_object_from_string', registry.get_object_from_string)
        registry.get_object_from_string = _of_openmmlab
        stack.callback(setattr, Registry, 'get', Registry.get)
        Registry.get = get  # a string may name a type under keys other than type, too
        stack.enter_context(bounded_memory(_BYTES + 32 * elements))
        yield


def _of_openmmlab(path: str) -> object:
    """The class that a full path is of, as configs of the newer style name it."""
    package, dot, _ = path.partition('.')
    return get_object_from_string(path) if dot and package in PACKAGES else None
