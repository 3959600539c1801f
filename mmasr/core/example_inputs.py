"""Inputs on which a block runs, guessed from its layers. Needs torch only."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .class_surgery import eval_copy
from .differences import tensors

#: Height and width of feature maps: divisible by the strides and by the windows (7) of common blocks.
_SIDES = 28, 56
#: Size of the batch, and the number of shapes that are tried.
_SAMPLES, _ATTEMPTS = 2, 30
#: Names under which layers have their number of input channels.
_CHANNELS = 'in_channels', 'in_features', 'num_features', 'num_channels', 'normalized_shape'


def example_inputs(module: nn.Module) -> tuple | None:
    """Return arguments on which a module runs, random with a fixed seed.

    Args:
        module (nn.Module): A block that takes one feature map (N, C, H, W), sequence (N, L, C) or vector
            (N, C), with C given by one of its layers.

    Returns:
        tuple | None: The arguments, on its device and of its dtype; None if it runs on none of these.
    """
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    trial = eval_copy(module)
    for shape in _shapes(module):
        args = (torch.randn(shape, generator=generator).to(parameter),)
        try:
            output = run(trial, args, {})
        except Exception:  # a module of another library can raise anything
            continue
        if next(tensors('output', output), None) is not None:
            return args
    return None


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield possible shapes of the input of a module, those that fit its first layer first."""
    shapes: dict[tuple[int, ...], None] = {}
    for layer in module.modules():
        channels = next((c for name in _CHANNELS if (c := getattr(layer, name, None)) is not None), None)
        channels = channels[-1] if isinstance(channels, tuple) else channels
        if not isinstance(channels, int):  # a block may have lists under these names
            continue
        maps = [(_SAMPLES, channels, side, side) for side in _SIDES]
        others = [(_SAMPLES, _SIDES[0], channels), (_SAMPLES, channels), (_SAMPLES, channels, _SIDES[0])]
        is_map = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.GroupNorm)
        shapes.update(dict.fromkeys([*maps, *others] if is_map else [*others, *maps]))
    yield from itertools.islice(shapes, _ATTEMPTS)


@torch.no_grad()
@torch.random.fork_rng([])
def run(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Run a module on a copy of its arguments, without gradients; noise that it draws is the same each time.

    Args:
        module (nn.Module): The module.
        args (tuple): Its arguments.
        kwargs (dict): Its keyword arguments.

    Returns:
        Any: Its output.
    """
    torch.default_generator.manual_seed(0)
    args, kwargs = copied((args, kwargs))
    return module(*args, **kwargs)


def copied(value: Any) -> Any:
    """Return a copy of the tensors in nested containers, without gradients."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, value)


def is_real(value: Any) -> bool:
    """Return whether a value is a tensor of real numbers in floating point."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def random_like(value: Any, scale: float) -> Any:
    """Return normal random numbers in the shape of a tensor, always the same.

    Args:
        value (Any): A tensor; anything else, and tensors of integers, are returned themselves.
        scale (float): Standard deviation.

    Returns:
        Any: A tensor of the same shape, type and device.
    """
    if not is_real(value):
        return value
    generator = torch.Generator(value.device).manual_seed(0)
    return scale * torch.randn(value.shape, generator=generator, device=value.device).to(value)
