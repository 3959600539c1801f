"""Check that blocks of other libraries merge into what they compute. Needs torch only."""

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..errors import InputError
from .class_surgery import eval_copy
from .differences import check_differences, coarsest, compare
from .example_inputs import copied, example_inputs, is_real, random_like
from .foldable import find_foldable, fold_all
from .merge import FUSED_FORWARD, MERGE_BOUND, SCALES, foreign_blocks, is_foreign, outputs, structure

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
            problem = _shared(model, block) or _problem(block, received.get(name))
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


def _shared(model: nn.Module, block: nn.Module) -> str | None:
    """Return why merging a block would change other parts of a network; None if it would not."""
    inside = {*block.modules()}
    outside = [module for module in model.modules() if module not in inside]
    children = {child for module in outside for child in module._modules.values()} - {block}
    parameters = {parameter for module in outside for parameter in module._parameters.values()} - {None}
    if inside & children or parameters & {*block.parameters()}:
        return 'other parts of the network share its layers or weights'
    return None


def _problem(block: nn.Module, received: tuple | None) -> str | None:
    """Return why a block cannot be merged; None if it can."""
    forward = vars(block).get('forward')
    if forward is not None and getattr(forward, '__name__', None) != FUSED_FORWARD:
        return 'it has an overridden forward'
    try:
        trained = eval_copy(block)
    except RuntimeError as error:  # it keeps tensors of a training step
        return f'it cannot be copied: {error}'
    if torch.finfo(coarsest(p.dtype for p in block.parameters())).bits < 32:
        trained, received = trained.float(), tree_map(_in_float, received)
    if received is None:
        args = example_inputs(trained)
        if args is None:
            return 'no input is known on which it runs; pass inputs of the network with `verify`'
        received = args, {}
    others = [tree_map(functools.partial(random_like, scale=scale), received) for scale in SCALES]
    try:
        return _compare(trained, received, others)
    except InputError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # a method of another library can raise anything
        return f'its own method failed: {type(error).__name__}: {error}'


def _compare(trained: nn.Module, received: tuple, others: Sequence[tuple]) -> str | None:
    """Merge a copy of a block and compare both on what it receives, and on others that it can take.

    Returns:
        str | None: Empty if merging changes nothing; None if both agree.

    Raises:
        InputError: If they do not.
    """
    merged = fold_all(copy.deepcopy(trained))
    if structure(merged) == structure(fold_all(copy.deepcopy(trained), foreign_blocks(trained))):
        return ''
    for given in [received, *filter(functools.partial(_is_usable, trained), others)]:
        differences = compare(outputs(trained, *given), outputs(merged, *given), NETWORKS)
        check_differences(differences, MERGE_BOUND, NETWORKS)
    return None


def _is_usable(block: nn.Module, given: tuple) -> bool:
    """Return whether a block has finite outputs for some arguments."""
    try:
        return all(tensor.isfinite().all() for tensor in outputs(block, *given).values())
    except Exception:  # a block of another library can raise anything
        return False


def _in_float(value: Any) -> Any:
    return value.float() if is_real(value) else value
