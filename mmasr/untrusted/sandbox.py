"""Sandbox in which the network of an untrusted checkpoint is built and run."""

import os
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

from ..errors import InputError, shortened
from .allowlist import PACKAGES, allowed_arguments, forbidden_arguments, reason_against
from .memory import limited_memory

#: What a network may have in addition to a multiple of its checkpoint, so that the smallest one builds:
#: elements of parameters and buffers, modules, bytes of memory.
_ELEMENTS, _MODULES, _BYTES = 10**7, 10**4, 8 * 2**30


class SandboxError(InputError, RuntimeError):
    """Something that an untrusted network may not do. The message names the class and the file or number."""


class _Budget:
    """Elements and modules that a network may still create."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.elements = 4 * sum(sizes.values()) + _ELEMENTS
        self.modules = self.most_modules = 16 * len(sizes) + _MODULES

    def count_tensor(self, module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        """Count a parameter or buffer when it is registered."""
        size = 0 if tensor is None else tensor.numel()
        self.elements -= size
        if self.elements < 0:
            raise SandboxError(
                f'the network is many times larger than its weights: {type(module).__name__}.{name} has '
                f'{size:,} elements'
            )

    def count_module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        """Count a module when it is registered, and check its numbers."""
        self.modules -= 1
        if self.modules < 0:
            raise SandboxError(
                f'the network is many times larger than its weights: more than {self.most_modules:,} '
                f'modules, the last in a {type(module).__name__}'
            )
        check_numbers(child)


class _Building:
    """Guarded versions of mmengine's functions that look up, build and load."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self.trusted = tuple(trusted)
        self.classes: list[str] = []  # those being built, the innermost last
        self.get_of_mmengine, self.build_of_mmengine = Registry.get, Registry.build

    def get(self, registry: Registry, key: str) -> object:
        """Look up a class that may be built. A string may name one under keys other than ``type``, too."""
        found = self.get_of_mmengine(registry, key)
        if found is not None and (reason := reason_against(found, self.trusted)):
            raise SandboxError(f'the config builds {key!r}, which is not allowed: {reason}')
        return found

    def build(self, registry: Registry, config: dict, *args, **kwargs) -> object:
        """Build an object. Some arguments come from outside the config that was checked."""
        kind = config.get('type') if isinstance(config, dict) else None
        kind = self.get_of_mmengine(registry, kind) if isinstance(kind, str) else kind
        allowed = allowed_arguments(kind)
        if allowed is not None and (others := forbidden_arguments(config, allowed)):
            given = shortened([f'{key}={str(config[key])[:60]!r}' for key in others])
            raise SandboxError(f'the config builds {config["type"]!r} with {given}, which is not allowed')
        self.classes.append(getattr(kind, '__name__', 'the network'))
        try:
            return self.build_of_mmengine(registry, config, *args, **kwargs)
        finally:
            self.classes.pop()

    def refuse_to_load(self, file: object = None, *_, **options) -> None:
        """Refuse to load a checkpoint or any other pickle."""
        file = file if file is not None else next(iter(options.values()), 'a file')
        name = os.fspath(file) if isinstance(file, str | os.PathLike) else f'a {type(file).__name__}'
        owner = self.classes[-1] if self.classes else 'the network'
        raise SandboxError(
            f"{owner} loads the file {name!r}, which a checkpoint's config may not do; pass the config with "
            '`config`'
        )


@contextmanager
def sandbox(
    sizes: Mapping[str, int], trusted: Iterable[str] = (), limit_memory: bool = True
) -> Iterator[None]:
    """While active, restrict everything that this process builds and loads.

    - Only classes of the allow-list are built, with allowed arguments.
    - The parameters, modules and memory of a network stay in proportion to its checkpoint.
    - No checkpoint is loaded.
    - A type that is not in a registry is not imported, as mmengine would do.

    Args:
        sizes (Mapping[str, int]): Number of elements of each weight in the checkpoint.
        trusted (Iterable[str]): Modules whose classes are all allowed. Default: none.
        limit_memory (bool): Whether to limit memory, which a GPU's driver does not support. Default: True.

    Raises:
        SandboxError: Inside, where any of this is violated.
    """
    budget, building = _Budget(sizes), _Building(trusted)
    with ExitStack() as stack:
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        ):
            stack.callback(register(budget.count_tensor).remove)
        stack.callback(register_module_module_registration_hook(budget.count_module).remove)
        for owner, name, guarded in (
            (registry, 'get_object_from_string', _object_of_openmmlab),
            (Registry, 'get', lambda registry, key: building.get(registry, key)),
            (
                Registry,
                'build',
                lambda registry, *args, **options: building.build(registry, *args, **options),
            ),
            (torch, 'load', building.refuse_to_load),
            (CheckpointLoader, 'load_checkpoint', building.refuse_to_load),
        ):
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, guarded)
        stack.enter_context(
            limited_memory(_BYTES + 32 * sum(sizes.values())) if limit_memory else nullcontext()
        )
        yield


def check_numbers(module: nn.Module | None) -> None:
    """Refuse a layer with numbers by which native code would divide by 0, or read beyond its input.

    The operators of mmcv do not check them.

    Raises:
        SandboxError: If there is such a number.
    """
    for name in ('stride', 'dilation', 'groups', 'deform_groups'):
        value = getattr(module, name, 1)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and number < 1 for number in numbers):
            raise SandboxError(f'{type(module).__name__} has a {name} of {value}')
    if isinstance(module, ModulatedDeformConv2d) and module.in_channels % module.deform_groups:
        raise SandboxError(
            f'{type(module).__name__} has {module.in_channels} channels, which {module.deform_groups} '
            'deform_groups do not divide'
        )


def _object_of_openmmlab(path: str) -> object:
    """Return the class with a full path in OpenMMLab's packages; None for other paths."""
    package, dot, _ = path.partition('.')
    return get_object_from_string(path) if dot and package in PACKAGES else None
