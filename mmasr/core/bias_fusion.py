"""Fuse the bias of a convolution into the normalization after it. Needs torch only."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InputError


@torch.no_grad()
def fuse_biases(model: nn.Module, names: Sequence[str], run: Callable[[], object]) -> dict[str, list[str]]:
    """Fuse the biases of convolutions into the BatchNorms after them, in place.

    Merged branches have a bias, even where the stock network has none because a normalization follows.

    Args:
        model (nn.Module): A network in eval mode.
        names (Sequence[str]): Names of convolutions with a bias.
        run (callable): Runs the network once, to find the layer after each convolution.

    Returns:
        dict[str, list[str]]: Name of each convolution, which has no bias now -> names of the BatchNorms after
        it. A layer that is used in several places has all its names.

    Raises:
        InputError: If anything but a BatchNorm of its own follows one of them. The model is then unchanged.
    """
    if not names:
        return {}
    followers = _followers(model, names, run)
    for conv, norms in followers.items():
        for norm in set(norms):
            norm.running_mean -= conv.bias
        conv.bias = None
    places = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        places[module].append(name)
    return {
        name: [place for norm in dict.fromkeys(norms) for place in places[norm]]
        for conv, norms in followers.items()
        for name in places[conv]
    }


def _followers(
    model: nn.Module, names: Sequence[str], run: Callable[[], object]
) -> dict[nn.Module, list[nn.Module]]:
    """Run a network, and return the BatchNorms that read the outputs of each convolution."""
    convs = {model.get_submodule(name): name for name in names}
    outputs, unread = WeakTensorKeyDictionary(), Counter()
    found: dict[nn.Module, list[nn.Module]] = {conv: [] for conv in convs}

    def after(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if module in convs:
            outputs[output] = module
            unread[module] += 1
        elif args[0] in outputs:
            unread[outputs[args[0]]] -= 1
            found[outputs[args[0]]].append(module)

    hooks = [
        m.register_forward_hook(after) for m in model.modules() if m in convs or isinstance(m, _BatchNorm)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    owners = Counter(norm for norms in found.values() for norm in set(norms))
    for conv, name in convs.items():
        if not found[conv] or unread[conv] or any(owners[norm] > 1 for norm in found[conv]):
            raise InputError(
                f"{name} can't be merged into a convolution without bias: no BatchNorm of its own follows it"
            )
    return found
