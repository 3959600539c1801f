"""Modules whose branches merge into one layer: those of mmasr and of other libraries. Needs torch only.

:data:`ADAPTERS` describes each class. A class of another library needs one entry, such as those in
:mod:`mmasr.convolutions.blocks`; all classes of mmasr share the entry of their base class
(:class:`mmasr.core.reparameterization.BranchReparameterization`).
"""

import dataclasses
from collections.abc import Callable, Sequence

from torch import nn

from .class_lookup import lookup_by_class
from .class_surgery import stock_class


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Description of how modules of one class merge their branches.

    Attributes:
        branch_ends (callable): ``module -> names``: the last layers of the branches that it adds up, and the
            layer that the branches become. One ASR scales all of them together.
        can_merge (callable): ``module -> bool``: whether branches are left, and merging keeps what it
            computes.
        method (str, optional): Name of the module's own method that merges the branches in place. None for
            modules of mmasr.
        merge (callable, optional): ``module -> module``: merges the branches and returns the merged layer.
            Default: call ``method``.
        lacks_deployed_config (bool): Whether no config builds the merged form, so that deployed files keep
            the branches. Default: False.
    """

    branch_ends: Callable[[nn.Module], Sequence[str]]
    can_merge: Callable[[nn.Module], bool]
    method: str | None = None
    merge: Callable[[nn.Module], nn.Module] | None = None
    lacks_deployed_config: bool = False


#: ``'package.Class'`` -> adapter.
ADAPTERS: dict[str, Adapter] = {}


def has_branches(module: nn.Module) -> bool:
    """Return whether a module is of a class that merges branches, even if it has merged them already."""
    return lookup_by_class(ADAPTERS, module) is not None


def merge_method(module: nn.Module | type[nn.Module]) -> str | None:
    """Return the method by which a block of another library merges its branches; None for others."""
    adapter = lookup_by_class(ADAPTERS, module)
    return adapter.method if adapter else None


def fuse_method(module: nn.Module | type[nn.Module]) -> str | None:
    """Return the method by which a block of timm merges its layers; None for others."""
    cls = stock_class(module if isinstance(module, type) else type(module))
    is_timm = cls.__module__.split('.')[0] == 'timm'
    return next((name for name in ('fuse', 'reparameterize') if is_timm and hasattr(cls, name)), None)


def merges_itself(module: nn.Module) -> bool:
    """Return whether a module is a block that merges layers inside, so that these cannot have branches.

    Merging a convolution with branches gives a bias, which the block does not expect.
    """
    return has_branches(module) or fuse_method(module) is not None


def can_merge(module: nn.Module) -> bool:
    """Return whether a module has branches left to merge."""
    adapter = lookup_by_class(ADAPTERS, module)
    return adapter is not None and adapter.can_merge(module)


def lacks_deployed_config(module: nn.Module) -> bool:
    """Return whether deployed files keep a module's branches, because no config builds it merged."""
    adapter = lookup_by_class(ADAPTERS, module)
    return adapter is not None and adapter.lacks_deployed_config


def merge(module: nn.Module) -> nn.Module:
    """Merge the branches of a module.

    Args:
        module (nn.Module): A module that :func:`can_merge`, with nothing left to fold inside.

    Returns:
        nn.Module: The merged layer, in the same mode; the module itself if another library merges in place.
    """
    adapter = lookup_by_class(ADAPTERS, module)
    if adapter.merge:
        return adapter.merge(module)
    getattr(module, adapter.method)()
    return module


def branch_ends(module: nn.Module) -> dict[str, nn.Module]:
    """Return the last layers of the branches that a module adds up, by name; empty if it adds up none."""
    adapter = lookup_by_class(ADAPTERS, module)
    names = adapter.branch_ends(module) if adapter else ()
    if not names:
        return {}
    modules = dict(module.named_modules())  # a branch may be missing, or merged with the others already
    return {name: modules[name] for name in names if name in modules}
