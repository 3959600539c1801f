"""Layers that run with effective parameters. Needs torch only.

A host keeps its class, its own parameters and their names. It has one child, such as an ASR, from which its
effective parameters are computed. No feature map is multiplied: the products are taken with the parameters,
also in training, and folding writes the same products back.

Two tools of torch do almost the same:

- ``torch.nn.utils.parametrize`` moves the original parameter to ``parametrizations.weight.original``, so a
  plain checkpoint no longer loads. It also computes each parameter separately: κ once for the weight, once
  for the bias.
- ``torch.func.functional_call`` writes the tensors into the module while it runs, so two threads or two
  replicas that share a network collide; and ``torch.compile`` breaks its graph at a layer that calls itself
  this way. A shallow copy (:func:`mmasr.core.class_surgery.with_parameters`) has neither problem.
"""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .class_surgery import Mixin, mixed_class, with_parameters
from .compat import is_compiling
from .eval_cache import cached, invalidate, without_cache
from .reparameterization import ParameterReparameterization, Reparameterization
from .scaling import is_batch_norm


class _ActivePasses(threading.local):
    def __init__(self) -> None:
        self.passes = []


#: The forward passes of :mod:`mmasr.core.batched` that are active in this thread.
active_passes = _ActivePasses()


class Host(Mixin):
    """Mixin for the class of a layer whose effective parameters are computed from a child.

    The layer keeps its type, its parameters and their names. Its state dict gains the keys of the child.
    """

    def reparameterization(self) -> ParameterReparameterization:
        """Return the child from which the effective parameters are computed."""
        return next(child for child in self._modules.values() if isinstance(child, Reparameterization))

    def forward(self, *args, **kwargs):
        """Run the stock layer with the effective parameters.

        Args:
            *args: Arguments of the stock layer.
            **kwargs: Keyword arguments of the stock layer.
        """
        parameters = None if is_compiling() else self._parameters_of_pass()
        if parameters is None:
            parameters = cached(self, self._own_parameters)
        return self.stock.forward(with_parameters(self, self.stock, parameters), *args, **kwargs)

    def _parameters_of_pass(self) -> dict[str, torch.Tensor] | None:
        """Return the effective parameters from an active pass, if it has them."""
        for active in reversed(active_passes.passes):
            if (parameters := active.effective_parameters(self)) is not None:
                return parameters
        return None

    def _own_parameters(self) -> dict[str, torch.Tensor]:
        return self.reparameterization().effective_parameters(self)

    @property
    def qconfig(self) -> object:
        """Configuration of torch's quantization, which a layer with re-parameterization cannot have.

        Raises:
            AttributeError: Always; an assignment raises an InputError.
        """
        raise AttributeError('qconfig')

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        # Quantization sets this everywhere, replaces layers by their exact class, and would leave this one.
        raise InputError(
            f'a {self.stock.__name__} with {self.reparameterization().title} cannot be quantized; call '
            'mmasr.fold before preparing the network for quantization'
        )

    def train(self, mode: bool = True) -> nn.Module:
        """Set training or eval mode, and invalidate the eval cache."""
        invalidate(self)
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> nn.Module:
        invalidate(self)
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return without_cache(super().__getstate__())

    def init_weights(self) -> None:
        """Set the child's initial values, when OpenMMLab has initialized the network around it."""
        if self._is_host():  # a backbone detaches the child in the meantime
            self.reparameterization().init_weights()
            self.reparameterization().init_layer(self)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the effective parameters into the layer, drop the child, and restore the stock class.

        It leaves what :func:`mmasr.attach` has added to the network; :func:`mmasr.fold` removes that as well.
        """
        invalidate(self)
        reparameterization = self.reparameterization()
        write_parameters(self, reparameterization.effective_parameters(self))
        delattr(self, reparameterization.attribute)
        for key, hook in list(self._forward_pre_hooks.items()):
            if hook is _disable_fused_path:
                del self._forward_pre_hooks[key]
        self.restore_class()

    def restore_class(self) -> None:
        """Restore the stock class once the child is gone."""
        if not self._is_host():
            super().restore_class()

    def _is_host(self) -> bool:
        return any(isinstance(child, Reparameterization) for child in self._modules.values())


def find_reparameterizations(model: nn.Module) -> Iterator[tuple[str, nn.Module, Reparameterization]]:
    """Find all re-parameterizations in a network.

    A layer with branches that carries an ASR is found twice. An ASR that is a plugin, and so without a host,
    is not found.

    Args:
        model (nn.Module): Any network.

    Yields:
        tuple[str, nn.Module, Reparameterization]: Name of the site, the layer there, and its
        re-parameterization: a child of the layer, or the layer itself.
    """
    for name, module in model.named_modules():
        if isinstance(module, Host):
            yield name, module, module.reparameterization()
        if isinstance(module, Reparameterization) and module.attribute is None:
            yield name, module, module


def write_parameters(layer: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Set parameters of a layer, which stay the same objects, so that an optimizer keeps training them.

    Args:
        layer (nn.Module): The layer.
        tensors (dict[str, Tensor]): Name of a parameter of the layer or of a module inside -> its new value.
    """
    for name, tensor in tensors.items():
        layer.get_parameter(name).data = tensor


def become_host(layer: nn.Module) -> None:
    """Turn a layer into a host, in place; the caller sets its child."""
    layer.__class__ = mixed_class(Host, type(layer))
    # Other layers are never part of a transformer layer, and a call with a hook takes longer.
    if isinstance(layer, nn.Linear | nn.LayerNorm | nn.MultiheadAttention):
        layer.register_forward_pre_hook(_disable_fused_path)


def _disable_fused_path(module: nn.Module, args: tuple) -> None:
    """Do nothing, as a hook whose presence makes ``nn.TransformerEncoderLayer`` call its layers.

    In eval mode it reads their parameters otherwise, which would ignore the ASR.
    """


def _keep_host(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Turn a batch normalization into a host when it receives the child of one.

    The conversions to and from SyncBatchNorm (torch's and mmengine's) build a new layer and register the old
    one's children in it. Without this hook the ASR would still exist, but without effect.
    """
    is_child = isinstance(child, Reparameterization) and name == child.attribute
    if is_child and not isinstance(parent, Host) and is_batch_norm(parent):
        become_host(parent)


nn.modules.module.register_module_module_registration_hook(_keep_host)
