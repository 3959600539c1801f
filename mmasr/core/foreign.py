"""Blocks and networks of other libraries that merge or fuse their own layers. Needs torch only.

Their methods read the parameters of the layers inside from outside, which would ignore an ASR. So they are
made to call :func:`mmasr.core.foldable.fold_all` first.
"""

import copy
from collections.abc import Callable

from torch import nn

from .bias_fusion import fuse_visible_biases
from .class_surgery import Mixin, mixed_class
from .foldable import find_foldable, fold_all
from .host import Host
from .merge import KERNEL_METHOD, foreign_blocks, own_methods
from .reparameterization import Reparameterization


class FoldBeforeMerge(Mixin):
    """Mixin for a block that merges its branches or a network that fuses its layers, to fold first."""

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Callable]:
        """Return the methods that merge or fuse, with folding first."""
        methods = dict.fromkeys([*own_methods(stock), KERNEL_METHOD])
        return {method: _folding_first(method) for method in methods if hasattr(stock, method)}


def _folding_first(method: str) -> Callable:
    def merge(self: Mixin, *args, **kwargs):
        network = copy.deepcopy(self) if method == KERNEL_METHOD else self  # which only reads
        biased = find_foldable(network, foreign_blocks(network)).without_stock_bias()
        fold_all(network, foreign_blocks(network))  # the method itself merges; the class is restored
        fuse_visible_biases(network, biased)
        return getattr(network, method)(*args, **kwargs)

    return merge


def fold_before_merge(model: nn.Module) -> None:
    """Make the blocks and networks of other libraries fold what is inside before they merge or fuse it.

    Args:
        model (nn.Module): A network after :func:`mmasr.attach`; changed in place.
    """
    for block in model.modules():
        if isinstance(block, FoldBeforeMerge) or not own_methods(block):
            continue
        if any(isinstance(part, Host | Reparameterization) for part in block.modules()):
            block.__class__ = mixed_class(FoldBeforeMerge, type(block))
