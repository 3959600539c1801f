"""Compare the outputs of two networks. Needs torch only."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import InputError

#: Largest difference allowed, relative to the largest value of an output, by the type of folded parameters.
#: Half precision rounds each folded product again, by up to eps / 2 (5e-4 and 4e-3). Its bounds are ten times
#: as large, and about ten times as large as the differences measured on ResNets of 18 to 101 layers.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclasses.dataclass
class Difference:
    """Difference of two networks in one output.

    Attributes:
        output (str): Name of the output.
        absolute (float): Largest absolute difference.
        relative (float): The same, relative to the largest absolute value of the output.
    """

    output: str
    absolute: float
    relative: float


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the coarsest of some types of weights; float32 if there are none with a bound."""
    return max((dtype for dtype in dtypes if dtype in BOUNDS), key=BOUNDS.get, default=torch.float32)


def tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Find all tensors in nested dicts, lists and tuples.

    Args:
        name (str): Start of their names.
        value (Any): A tensor, or a container.

    Yields:
        tuple[str, Tensor]: Name, from the keys on the way to it, and tensor.
    """
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(f'{name}.{key}'.lstrip('.'), item)


#: What :func:`compare` and :func:`check_differences` call the two networks.
TRAINED_AND_FOLDED = ('trained network', 'folded network')


def compare(
    expected: Mapping[str, torch.Tensor],
    actual: Mapping[str, torch.Tensor],
    networks: tuple[str, str] = TRAINED_AND_FOLDED,
) -> list[Difference]:
    """Compare the outputs of two networks.

    Args:
        expected (Mapping[str, Tensor]): Outputs by name.
        actual (Mapping[str, Tensor]): Outputs of the same names and shapes.
        networks (tuple[str, str]): What errors call the two networks.

    Returns:
        list[Difference]: The differences, one for each output that is not empty.

    Raises:
        InputError: If names or shapes differ, or an output of either network is not finite.
    """
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (expected, actual)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(f'the networks have different outputs: {shapes[0]} and {shapes[1]}')
    differences = []
    for name, reference in expected.items():
        if not reference.numel():
            continue
        for network, output in zip(networks, (reference, actual[name]), strict=True):
            if not output.isfinite().all():
                raise InputError(f'the output {name} of the {network} contains NaN or Inf')
        wide = torch.complex128 if reference.is_complex() else torch.float64
        reference = reference.to(wide)
        absolute = (actual[name].to(wide) - reference).abs().max().item()
        largest = reference.abs().max().item()
        differences.append(Difference(name, absolute, absolute / largest if largest else absolute))
    return differences


def check_differences(
    differences: Iterable[Difference], bound: float, networks: tuple[str, str] = TRAINED_AND_FOLDED
) -> None:
    """Check that every output agrees.

    Args:
        differences (Iterable[Difference]): One for each output.
        bound (float): Largest difference allowed, relative to the largest value of an output.
        networks (tuple[str, str]): What errors call the two networks.

    Raises:
        InputError: If one is larger; the message names the output that differs most.
    """
    if too_large := [difference for difference in differences if not difference.relative <= bound]:
        worst = max(too_large, key=lambda difference: difference.relative)
        raise InputError(
            f'the {networks[1]} differs from the {networks[0]}: {worst.output} by {worst.relative:.1e} of '
            f'its largest value, more than {bound:.0e}'
        )
