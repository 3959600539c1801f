"""Building and running a stranger's network within the bounds that its weights set."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from mmcv.ops import ModulatedDeformConv2d
from mmengine.registry import Registry, registry
from mmengine.runner import CheckpointLoader
from mmengine.utils import get_object_from_string
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..errors import some
from ..memory import bounded_memory
from .allowed import ARGUMENTS, DATA, PACKAGES, forbidden, path_of, reason_against

#: What a network may have more than its checkpoint, so that the smallest one builds: parameters, modules, bytes of memory.
_PARAMETERS, _MODULES, _BYTES = 10**7, 10**4, 8 * 2**30


@contextmanager
def restrained(sizes: Mapping[str, int], trusted: Iterable[str] = (), memory: bool = True) -> Iterator[None]:
    """Meanwhile nothing is built that is not allowed or out of proportion to a checkpoint, no checkpoint is loaded, not much
    more memory is taken, and a type that no registry has is not imported, as mmengine would do.

    Args:
        sizes (Mapping[str, int]): Number of elements of each of the checkpoint's weights.
        trusted (Iterable[str]): Modules of which everything is allowed. Default: none.
        memory (bool): Whether memory is bounded, which a GPU's driver does not go with. Default: True.

    Raises:
        RuntimeError: Within, where any of that happens.
    """
    elements = sum(sizes.values())
    left = {'elements': 4 * elements + _PARAMETERS, 'modules': 16 * len(sizes) + _MODULES}

    def spend(what: str, amount: int) -> None:
        left[what] -= amount
        if left[what] < 0:
            raise RuntimeError('its network is many times larger than the weights are')

    def count_tensor(module, name, tensor):
        spend('elements', 0 if tensor is None else tensor.numel())

    def count_module(module, name, child):
        spend('modules', 1)
        check_numbers(child)

    def get(registry: Registry, key: str) -> object:
        found = found_by_mmengine(registry, key)
        if found is not None and path_of(found) not in DATA and (reason := reason_against(found, trusted)):
            raise RuntimeError(f'it builds {key!r}, which is not allowed: {reason}')
        return found

    def build(registry: Registry, config: dict, *args, **kwargs) -> object:
        kind = config.get('type') if isinstance(config, dict) else None
        kind = found_by_mmengine(registry, kind) if isinstance(kind, str) else kind
        allowed = ARGUMENTS.get(path_of(kind))
        # Arguments may come from around the config that was checked.
        if allowed is not None and (others := forbidden(config, allowed)):
            raise RuntimeError(f'it builds {config["type"]!r} with {some(others)}, which may not be set')
        return built_by_mmengine(registry, config, *args, **kwargs)

    found_by_mmengine, built_by_mmengine = Registry.get, Registry.build
    with ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(count_tensor).remove)
        stack.callback(register_module_module_registration_hook(count_module).remove)
        for owner, name, other in (
            (registry, 'get_object_from_string', _of_openmmlab),
            (Registry, 'get', get),  # a string may name a type under keys other than type, too
            (Registry, 'build', build),
            (torch, 'load', _refuse_to_load),
            (CheckpointLoader, 'load_checkpoint', _refuse_to_load),
        ):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, other)
        stack.enter_context(bounded_memory(_BYTES + 32 * elements) if memory else nullcontext())
        yield


def check_numbers(module: nn.Module | None) -> None:
    """Refuse a layer by whose numbers native code would divide, or read beyond its input: mmcv's operators do not look."""
    for name in ('stride', 'dilation', 'groups', 'deform_groups'):
        value = getattr(module, name, 1)
        if any(isinstance(number, int) and number < 1 for number in (value if isinstance(value, tuple) else (value,))):
            raise RuntimeError(f'a {type(module).__name__} has a {name} of {value}')
    if isinstance(module, ModulatedDeformConv2d) and module.in_channels % module.deform_groups:
        raise RuntimeError(f'{module.in_channels} channels are not {module.deform_groups} groups of deformations')


def _refuse_to_load(*_, **__) -> None:
    raise RuntimeError('it loads a file, which is not allowed')


def _of_openmmlab(path: str) -> object:
    """The class that a full path is of, as configs of the newer style name it."""
    package, dot, _ = path.partition('.')
    return get_object_from_string(path) if dot and package in PACKAGES else None
