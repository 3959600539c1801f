"""Blocks and networks of other libraries that merge or fuse their own layers. Needs torch only.

Their methods read the parameters of the layers inside from outside, which would ignore an ASR. So they are
made to call :func:`mmasr.core.foldable.fold_all` first.
"""

from collections.abc import Callable

from torch import nn

from .class_lookup import lookup_by_class
from .class_surgery import Mixin, mixed_class
from .foldable import fold_all
from .host import Host
from .merge import fuse_method, merge_method
from .reparameterization import Reparameterization

#: Methods that fuse the convolutions of a whole network with their normalizations, by package and class.
FUSE_METHODS = {'ultralytics.BaseModel': 'fuse'}


def _method(module: nn.Module | type[nn.Module]) -> str | None:
    return merge_method(module) or lookup_by_class(FUSE_METHODS, module) or fuse_method(module)


class FoldBeforeMerge(Mixin):
    """Mixin for a block that merges its branches or a network that fuses its layers, to fold first."""

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Callable]:
        """Return the method that merges or fuses, with folding first."""
        method = _method(stock)
        return {method: _folding_first(method)}


def _folding_first(method: str) -> Callable:
    def merge(self: Mixin, *args, **kwargs):
        fold_all(
            self, stay=['']
        )  # the method itself merges the branches of the block, and its class is restored
        return getattr(self, method)(*args, **kwargs)

    return merge


def fold_before_merge(model: nn.Module) -> None:
    """Make the blocks and networks of other libraries fold what is inside before they merge or fuse it.

    Args:
        model (nn.Module): A network after :func:`mmasr.attach`; changed in place.
    """
    for block in model.modules():
        if isinstance(block, FoldBeforeMerge) or not _method(block):
            continue
        if any(isinstance(part, Host | Reparameterization) for part in block.modules()):
            block.__class__ = mixed_class(FoldBeforeMerge, type(block))
