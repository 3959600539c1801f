"""Fuse the bias of a convolution into the normalization after it. Needs torch only."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InputError


@torch.no_grad()
def fuse_biases(model: nn.Module, names: Sequence[str], run: Callable[[], object]) -> dict[str, str]:
    """Fuse the biases of convolutions into the BatchNorms after them, in place.

    Merged branches have a bias, even where the stock network has none because a normalization follows.

    Args:
        model (nn.Module): A network in eval mode.
        names (Sequence[str]): Names of convolutions with a bias.
        run (callable): Runs the network once, to find the layer after each convolution.

    Returns:
        dict[str, str]: Name of each convolution, which has no bias now -> name of the BatchNorm after it.

    Raises:
        InputError: If no BatchNorm directly follows one of them. The model is then unchanged.
    """
    if not names:
        return {}
    convs = {model.get_submodule(name): name for name in names}
    outputs, followers = WeakTensorKeyDictionary(), {}

    def after(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if module in convs:
            outputs[output] = module
        elif args[0] in outputs:
            followers[outputs[args[0]]] = module

    hooks = [
        m.register_forward_hook(after) for m in model.modules() if m in convs or isinstance(m, _BatchNorm)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for conv, name in convs.items():
        if conv not in followers:
            raise InputError(
                f"{name} can't be merged into a convolution without bias: no BatchNorm follows it"
            )
    for conv in convs:
        followers[conv].running_mean -= conv.bias
        conv.bias = None
    where = {module: name for name, module in model.named_modules()}
    return {name: where[followers[conv]] for conv, name in convs.items()}
