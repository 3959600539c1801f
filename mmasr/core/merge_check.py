"""Check that blocks of other libraries merge into what they compute. Needs torch only."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..errors import InputError
from .class_surgery import eval_copy
from .differences import check_differences, coarsest, compare
from .example_inputs import copied, example_inputs
from .foldable import find_foldable, fold_all
from .merge import MERGE_BOUND, foreign_blocks, is_foreign, outputs, structure

#: What errors call a block before and after.
NETWORKS = 'block', 'merged block'


def check_merges(
    model: nn.Module, stay: Collection[str] = (), run: Callable[[nn.Module], Any] | None = None
) -> dict[str, str]:
    """Merge copies of the blocks of other libraries, and compare their outputs.

    Each block runs before and after on the input that it receives in the network and on a random one of the
    same shape; without ``run`` on a random feature map that fits its layers. The outputs must agree
    within 1e-4 of their largest value. The blocks inside one that fails are tried one by one.

    Args:
        model (nn.Module): The network; it stays as it is.
        stay (Collection[str]): Names of blocks that are not merged. Default: none.
        run (callable, optional): Runs a network that is given to it, in eval mode.

    Returns:
        dict[str, str]: Names of the blocks that cannot be merged -> why; empty for one that was merged
        before.

    Raises:
        InputError: If something of mmasr in the network cannot be folded.
    """
    stays: dict[str, str] = {}
    checked: set[str] = set()
    received: dict[str, tuple] | None = None
    while True:
        branches = find_foldable(model, {*stay, *stays}).branches
        blocks = {name: m for name, m in branches.items() if is_foreign(m) and name not in checked}
        if not blocks:
            return stays
        if received is None:
            received = _received(model, run) if run else {}
        for name, block in blocks.items():
            problem = _problem(block, received.get(name))
            if problem is not None:
                stays[name] = problem
        checked.update(blocks)


@torch.no_grad()
def _received(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, tuple]:
    """Run a copy of a network; return the first arguments of each block of another library."""
    network, received = eval_copy(model), {}
    for name, module in network.named_modules():
        if is_foreign(module):

            def record(_, args: tuple, kwargs: dict, name: str = name) -> None:
                received.setdefault(name, copied((args, kwargs)))

            module.register_forward_pre_hook(record, with_kwargs=True)
    run(network)
    return received


def _problem(block: nn.Module, received: tuple | None) -> str | None:
    """Return why a block cannot be merged; None if it can."""
    if received is None:
        args = example_inputs(block)
        if args is None:
            return 'no input is known on which it runs; pass inputs of the network with `verify`'
        given = [(args, {})]
    else:
        given = [received, tree_map(_random, received)]
    trained = eval_copy(block)
    if torch.finfo(coarsest(p.dtype for p in block.parameters())).bits < 32:
        trained, given = trained.float(), tree_map(_in_float, given)
    try:
        merged = fold_all(copy.deepcopy(trained))
        folded = fold_all(copy.deepcopy(trained), foreign_blocks(trained))
        if structure(merged) == structure(folded):
            return ''
        for number, (args, kwargs) in enumerate(given):
            expected = outputs(trained, args, kwargs)
            if number and not all(tensor.isfinite().all() for tensor in expected.values()):
                continue  # random values are not for every block
            differences = compare(expected, outputs(merged, args, kwargs), NETWORKS)
            check_differences(differences, MERGE_BOUND, NETWORKS)
    except InputError as error:
        return str(error)
    except Exception as error:  # a method of another library can raise anything
        return f'its own method failed: {type(error).__name__}: {error}'
    return None


def _random(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator(value.device).manual_seed(0)
    return torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)


def _in_float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
