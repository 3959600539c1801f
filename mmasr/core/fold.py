"""Fold all re-parameterization of a network into stock layers. Needs torch only."""

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .bias_fusion import fuse_visible_biases
from .class_surgery import stock_class
from .foldable import find_foldable, fold_all
from .merge import foreign_blocks
from .merge_check import check_merges
from .verification import run_on, verify_fold


@torch.no_grad()
def fold(model: nn.Module, stay: Collection[str] = (), verify: Any = None, blocks: bool = True) -> nn.Module:
    """Fold all re-parameterization of a network into stock layers, in place.

    - A host, such as a layer with an ASR, gets its effective parameters written into it, and its stock class
      back.
    - An ASR that is a plugin of an OpenMMLab block is folded into the normalization before it.
    - A module with branches, such as an ACNet, merges into one convolution. This is a stock layer unless its
      kernel depends on the input. Its bias goes into the BatchNorm after it, if the stock layer has none.
    - A block of another library that merges itself, such as a RepVGG, MobileOne or LeViT block, is merged by
      its own method (:data:`mmasr.core.merge.MERGE_METHODS`), if that does not change what it computes:
      :mod:`mmasr.core.merge_check` runs a copy of it before and after. A block that this does not hold for
      stays, and a warning says why.

    In eval mode the network computes the same as before, up to rounding. Attention that depends on the image
    stays.

    Args:
        model (nn.Module): A network or a single layer. One with nothing to fold stays as it is.
        stay (Collection[str]): Names of modules whose branches are not merged. Default: none.
        verify (Any, optional): Inputs of the network: a tensor or other single argument, a tuple of
            arguments, or a dict of keyword arguments. A copy of the network is then folded first and compared
            with it in eval mode, as :mod:`mmasr.core.verification` describes: every folded layer, every
            tensor, and the outputs on these inputs. Default: none, without this comparison.
        blocks (bool): Also merge the blocks of other libraries. Without, they keep the form in which they
            train, whose checkpoints the stock network loads. Default: True.

    Returns:
        nn.Module: ``model``; or the merged layer, if ``model`` itself is a module with branches.

    Raises:
        InputError: If an ASR cannot be folded: it is neither in a host nor a plugin; it was removed from the
            network with its layer; it comes after attention that depends on the image; its scale is negative
            after a ReLU; or its layer has no parameter to take the scale. With ``verify``, also if anything
            differs, or a folded layer does not run on these inputs. The model is then unchanged.

    Example:
        >>> import torch, mmasr
        >>> bn = mmasr.attach(torch.nn.BatchNorm2d(8), dict(type='SE'), sites='').eval()
        >>> x = torch.randn(2, 8, 5, 5)
        >>> expected = bn(x)
        >>> torch.equal(mmasr.fold(bn)(x), expected)
        True
        >>> type(bn).__name__
        'BatchNorm2d'

        Verified, on inputs of the network:

        >>> conv = mmasr.attach(torch.nn.Conv2d(8, 8, 3), dict(type='OREPA'), sites='')
        >>> type(mmasr.fold(conv, verify=x)).__name__
        'Conv2d'
    """
    run = None if verify is None else lambda network: run_on(network, verify)
    stay = _with_blocks(model, stay) if blocks else {*stay, *foreign_blocks(model)}
    unmerged = check_merges(model, stay, run)
    for name, reason in unmerged.items():
        if reason:
            kind = stock_class(type(model.get_submodule(name))).__name__
            warnings.warn(f'{name or "the model"} ({kind}) is not merged: {reason}', stacklevel=3)
    stay |= unmerged.keys()
    if verify is not None:
        verify_fold(model, verify, stay)
    biased = find_foldable(model).without_stock_bias(stay)
    model = fold_all(model, stay)
    fuse_visible_biases(model, biased, run)
    return model


def _with_blocks(model: nn.Module, stay: Collection[str]) -> set[str]:
    """Return names of modules that stay, with their other names, and all blocks around and inside them."""
    modules = dict(model.named_modules(remove_duplicate=False))
    kept = {modules[name] for name in stay if name in modules}
    names = {name for name, module in modules.items() if module in kept}
    blocks = foreign_blocks(model)
    around = [block for block in blocks if any(name.startswith(block and f'{block}.') for name in names)]
    return {*stay, *names, *around, *foreign_blocks(model, names)}
