"""Fuse the bias of a convolution into the normalization after it. Needs torch only."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InputError
from .class_surgery import eval_copy
from .example_inputs import example_inputs
from .merge import agrees, outputs


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
    followers, problems = _followers(model, names, run)
    if problems:
        raise InputError(
            f"{problems[0]} can't be merged into a convolution without bias: no BatchNorm of its own "
            'follows it'
        )
    return _fuse(model, followers)


@torch.no_grad()
def fuse_visible_biases(
    model: nn.Module,
    names: Sequence[str],
    run: Callable[[nn.Module], dict[str, torch.Tensor]] | None = None,
) -> dict[str, list[str]]:
    """Fuse the biases of convolutions into the BatchNorms after them, in place, where these can be seen.

    Args:
        model (nn.Module): A network in any mode.
        names (Sequence[str]): Names of layers; those that are not convolutions with a bias stay.
        run (callable, optional): Runs a network that is given to it. Default: run the network on random
            inputs; or, if none are known that fit, the modules around each convolution, the largest first.

    Returns:
        dict[str, list[str]]: See :func:`fuse_biases`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    convs = [name for name in names if isinstance(modules[name], nn.Conv2d)]
    convs = [name for name in convs if modules[name].bias is not None]
    if run is not None:
        found = _seen(model, convs, run)
    else:
        found, decided = {}, set()
        for scope in sorted({outer for name in convs for outer in _around(name)}):  # the largest first
            inside = [
                name for name in convs if name not in decided and name.startswith(scope and f'{scope}.')
            ]
            seen = _seen_in(modules, scope, inside) if inside else None
            if seen is not None:
                found.update(seen)
                decided.update(inside)
    norms = {modules[name]: [modules[norm] for norm in found[name]] for name in convs if name in found}
    return _fuse(model, norms)


def _around(name: str) -> list[str]:
    """Return the names of all modules around one, from the network, ``''``, to its parent."""
    path = name.split('.')
    return ['.'.join(path[:i]) for i in range(len(path))]


def _seen_in(modules: dict[str, nn.Module], scope: str, convs: Sequence[str]) -> dict[str, list[str]] | None:
    """Run a part of a network on random inputs; return the BatchNorms that take biases there, by name.

    None, if no inputs are known on which it runs.
    """
    part = modules[scope]
    try:
        args = example_inputs(part)
    except RuntimeError:  # a part that keeps tensors of a training step cannot be copied
        args = None
    if args is None:
        return None
    start = len(scope) + 1 if scope else 0
    found = _seen(part, [name[start:] for name in convs], lambda network: outputs(network, args, {}))
    found = {
        f'{scope}.{conv}'.lstrip('.'): [f'{scope}.{norm}'.lstrip('.') for norm in norms]
        for conv, norms in found.items()
    }
    # What is also somewhere else in the network may be used otherwise there.
    places = Counter(modules.values())
    inside = Counter(module for name, module in modules.items() if name.startswith(scope and f'{scope}.'))
    return {
        conv: norms
        for conv, norms in found.items()
        if all(places[modules[name]] == inside[modules[name]] for name in (conv, *norms))
    }


def _seen(
    model: nn.Module, convs: Sequence[str], run: Callable[[nn.Module], dict[str, torch.Tensor]]
) -> dict[str, list[str]]:
    """Run a copy of a network; return the BatchNorms that take the bias of each convolution, by name.

    None, if that changes an output: something else may read a convolution, too.
    """
    if not convs:
        return {}
    network = eval_copy(model)
    expected = run(network)
    found = _fuse(network, _followers(network, convs, lambda: run(network))[0])
    return found if agrees(expected, run(network)) else {}


def _fuse(model: nn.Module, followers: dict[nn.Module, list[nn.Module]]) -> dict[str, list[str]]:
    """Fuse the bias of each convolution into its followers, and return the names of all of them."""
    found = _names(model, followers)
    for conv, norms in followers.items():
        for norm in set(norms) if conv.bias is not None else ():
            norm.running_mean -= conv.bias
        conv.bias = None
    return found


def _names(model: nn.Module, followers: dict[nn.Module, list[nn.Module]]) -> dict[str, list[str]]:
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
) -> tuple[dict[nn.Module, list[nn.Module]], list[str]]:
    """Run a network; return the BatchNorms that read each convolution, and the convolutions without one."""
    convs = {model.get_submodule(name): name for name in names}
    produced, unread = WeakTensorKeyDictionary(), Counter()
    found: dict[nn.Module, list[nn.Module]] = {conv: [] for conv in convs}

    def after(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        if module in convs:
            produced[output] = module
            unread[module] += 1
        elif (given := next(iter((*args, *kwargs.values())), None)) in produced:
            unread[produced[given]] -= 1
            found[produced[given]].append(module)

    hooks = [
        m.register_forward_hook(after, with_kwargs=True)
        for m in model.modules()
        if m in convs or isinstance(m, _BatchNorm)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    owners = Counter(norm for norms in found.values() for norm in set(norms))
    problems = [
        conv
        for conv in convs
        if not found[conv]
        or unread[conv]
        or any(owners[norm] > 1 or norm.running_mean is None for norm in found[conv])
    ]
    followers = {conv: norms for conv, norms in found.items() if conv not in problems}
    return followers, [convs[conv] for conv in problems]
