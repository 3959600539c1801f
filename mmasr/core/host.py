"""Layers that run with computed parameters. Needs torch only.

A host keeps its class, its own parameters and their names, and has a child from which the parameters that it runs with are
computed, such as an ASR. It never multiplies a feature map: the products are with its parameters, in training as well, and
folding writes those same products back.

Why it is neither of torch's own tools for this:

- ``torch.nn.utils.parametrize`` moves the original parameter to ``parametrizations.weight.original``, so a plain checkpoint
  no longer loads; and it computes every parameter on its own, κ once for the weight and once again for the bias.
- ``torch.func.functional_call`` writes the tensors into the module itself while it runs, so two threads that share a network
  meet there, and so do two replicas; and ``torch.compile`` breaks its graph at a layer that calls itself so. A shallow copy
  (:func:`mmasr.core.surgery.twin`) has neither problem.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .by_class import by_class
from .computed import Computed
from .kept import forget, keep, without_kept
from .merge import ADAPTERS, Merging
from .scaling import is_batch_norm
from .surgery import Mixed, mixed_class, twin
from .versions import is_compiling


class _GoingOn(threading.local):
    def __init__(self) -> None:
        self.passes = []


#: The forward passes of :mod:`mmasr.core.together` that are going on in this thread.
going_on = _GoingOn()


class Host(Mixed):
    """Mixed into the class of a layer whose parameters are computed from a child.

    The layer keeps its type, its parameters and their names; its state dict gains the keys of the child.
    """

    def computed(self) -> Computed:
        """The child that the parameters are computed from."""
        return next(child for child in self._modules.values() if isinstance(child, Computed))

    def forward(self, *args, **kwargs):
        """Run the stock layer with the computed parameters."""
        return self.stock.forward(twin(self, self.stock, keep(self, self._tensors)), *args, **kwargs)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The computed parameters: from a forward pass for which they were computed with those of other hosts, or its own."""
        for one in [] if is_compiling() else reversed(going_on.passes):
            if (tensors := one.tensors(self)) is not None:
                return tensors
        return self.computed().tensors(self)

    def train(self, mode: bool = True) -> nn.Module:
        """Set training or eval mode; what was kept in eval mode is computed again."""
        forget(self)
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> nn.Module:
        forget(self)
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return without_kept(super().__getstate__())

    def init_weights(self) -> None:
        """Give the child its initial state; OpenMMLab calls this once it has initialised what is around."""
        if any(isinstance(child, Computed) for child in self._modules.values()):  # a backbone takes it out meanwhile
            self.computed().init_weights()
            self.computed().init_layer(self)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the computed parameters into the layer, drop the child, and become the stock class again."""
        forget(self)
        computed = self.computed()
        write(self, computed.tensors(self))
        delattr(self, computed.child)
        for key, hook in list(self._forward_pre_hooks.items()):
            if hook is _call_me:
                del self._forward_pre_hooks[key]
        self.restore_class()

    def restore_class(self) -> None:
        """Become the stock class again once the child is gone."""
        if not any(isinstance(child, Computed) for child in self._modules.values()):
            super().restore_class()

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Callable]:
        """See :class:`FoldsFirst`."""
        return FoldsFirst.overrides(stock)


#: Methods of other libraries' networks that fuse convolutions with their normalizations, by package and class.
FUSING = {'ultralytics.BaseModel': 'fuse'}


def _merging_method(cls: nn.Module | type[nn.Module]) -> str | None:
    """Name of the method of another library's block or network that reads the parameters of the layers in it from outside."""
    adapter = by_class(ADAPTERS, cls)
    return adapter.method if adapter else by_class(FUSING, cls)


class FoldsFirst(Mixed):
    """Mixed into a block of another library that merges its branches, or a network that fuses its layers: its method, which
    reads the parameters of the layers from outside, folds what is in it first."""

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Callable]:
        """The method that merges."""
        method = _merging_method(stock)
        return {method: _folding_first(method)} if method else {}


def _folding_first(method: str) -> Callable:
    def merge(self: Mixed, *args, **kwargs):
        from .fold import fold  # it knows hosts itself

        fold(self, stay=[''])  # the method merges the branches of a block
        return getattr(self, method)(*args, **kwargs)

    return merge


def write(layer: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors in the place of a layer's parameters.

    Args:
        layer (nn.Module): The layer.
        tensors (dict[str, Tensor]): Name of a parameter of the layer or of a module in it -> its new value.
    """
    for name, tensor in tensors.items():
        owner, _, parameter = name.rpartition('.')
        # A new Parameter, as the old one may be shared with a layer that has no ASR.
        old = layer.get_parameter(name)
        setattr(layer.get_submodule(owner), parameter, nn.Parameter(tensor, old.requires_grad))


def become_host(layer: nn.Module) -> None:
    """Make a layer a host, in place; its child is still to be set."""
    layer.__class__ = mixed_class(Host, type(layer))
    if not is_batch_norm(layer):  # never part of a transformer layer, and a call with a hook takes longer
        layer.register_forward_pre_hook(_call_me)


def fold_first(model: nn.Module) -> None:
    """Have the blocks and networks of other libraries that merge or fuse by themselves fold what is in them first."""
    for block in model.modules():
        merges = not isinstance(block, Mixed) and _merging_method(block)
        if merges and any(isinstance(part, Host | Merging) for part in block.modules()):
            block.__class__ = mixed_class(FoldsFirst, type(block))


def _call_me(module: nn.Module, args: tuple) -> None:
    """A hook that does nothing. In eval mode ``nn.TransformerEncoderLayer`` reads the parameters of its layers instead of
    calling them, which would leave the ASR out, unless one of them has a hook."""


def _stay_host(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Make a batch normalization a host when it receives the child of one.

    The conversions to and from SyncBatchNorm (torch's and mmengine's) build a new layer and register the old one's
    children in it. Without this the ASR would still be there and no longer do anything.
    """
    if isinstance(child, Computed) and name == child.child and not isinstance(parent, Host) and is_batch_norm(parent):
        become_host(parent)


nn.modules.module.register_module_module_registration_hook(_stay_host)
