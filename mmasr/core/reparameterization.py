"""The protocol that every re-parameterization implements, and the registry of their names. Needs torch only.

A :class:`Reparameterization` is the training form of a layer, and folds back into a stock layer. There are
two kinds:

- :class:`ParameterReparameterization` (ASR, OREPA) is a child of the layer. The layer's effective parameters
  are computed from it.
- :class:`BranchReparameterization` (ACNet, DBB, RepVGG and others) replaces the layer by branches, which
  merge into one layer.

A new one is a subclass and one registration, ``REPARAMETERIZATIONS['Name'] = Name``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

from ..attention import ATTENTIONS, registered_name
from ..errors import InputError
from .body import body_convolutions
from .class_surgery import move_hooks
from .merge import ADAPTERS, Adapter, branch_ends, has_branches, merges_itself


class Reparameterization(nn.Module, ABC):
    """Training form of a layer."""

    #: Name of the child of the layer, if it is one; None if it replaces the layer.
    attribute: str | None = None
    #: Name of a child that marks it in the names of a state dict: ``<site>.<marker>.*``. If the merged layer
    #: is a layer of mmasr, its state dict has the marker as well.
    state_dict_marker: str | None = None
    #: Regular expression that matches the sorted names of its children in a state dict, with spaces between,
    #: where several kinds have one marker. None if the marker alone tells. A subclass does not inherit it.
    state_dict_children: str | None = None
    #: Whether its folded layer has a kernel that depends on the input, so that images of one size and scale
    #: cannot vouch for it.
    depends_on_input = False
    #: Whether the layer that it replaces has a bias.
    stock_bias = True

    @classmethod
    @abstractmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Check that a layer is supported.

        Args:
            name (str): Name of the layer, for the error.
            layer (nn.Module): Any module.

        Raises:
            InputError: If it is not.
        """

    @classmethod
    @abstractmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the names of the layers of a network that get one by default."""

    @classmethod
    @abstractmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why a network has no default sites, as the end of a sentence that begins with its class."""

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """Return the options at each site. Default: the same everywhere.

        Args:
            model (nn.Module): The network.
            names (Sequence[str]): Names of the sites.
            options (dict): The options that the user gave.

        Returns:
            dict[str, dict]: Site -> options.
        """
        return dict.fromkeys(names, options)

    @classmethod
    @abstractmethod
    def from_layer(cls, layer: nn.Module, **options) -> nn.Module:
        """Make one for a layer.

        Args:
            layer (nn.Module): A layer that :meth:`check` accepts.
            **options: Options of the class.

        Returns:
            nn.Module: On the layer's device and of its dtype.

        Raises:
            InputError: If the options or the layer's shape are not supported.
        """

    @classmethod
    def deployed_options(cls, options: dict, network: nn.Module | None) -> dict | None:
        """Return the options that build the folded form from a config.

        Args:
            options (dict): The options in the trained network's config, including ``type`` and ``sites``.
            network (nn.Module, optional): The folded network, if it is known.

        Returns:
            dict | None: The options; None if the folded layers are stock layers, which need none. The
                default.
        """
        return None

    def init_weights(self) -> None:
        """Set its own initial values. OpenMMLab's ``init_weights`` calls this after it has set all others."""

    def like(self, weight: torch.Tensor) -> 'Reparameterization':
        """Move to the device and the dtype of a layer's weight, in place.

        In float64 the initial values are set again: those that cancel each other, as ``init_identity`` needs,
        were rounded to float32.
        """
        move_like(self, weight)
        if weight.dtype == torch.float64:
            self.init_weights()
        return self

    def init_layer(self, layer: nn.Module) -> None:
        """Set the initial values that the layer's own parameters need next to it, after :meth:`init_weights`.

        Default: they stay as they are.
        """


class ParameterReparameterization(Reparameterization):
    """Child of a layer, from which the layer's effective parameters are computed.

    The layer, a :class:`mmasr.core.host.Host`, keeps its class, its parameters and their names. It runs with
    :meth:`effective_parameters` in place of its own, and folding writes the same tensors back, so that
    nothing changes, not even in rounding.
    """

    #: Its name in messages.
    title: str
    #: Whether verification computes it in double precision. Not where rounding may change the effective
    #: parameters much: then those count that the trained network computed, in its own type.
    verified_in_double = True

    @abstractmethod
    def effective_parameters(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Compute the parameters that a layer runs with.

        Args:
            layer (nn.Module): The layer.

        Returns:
            dict[str, Tensor]: Name of a parameter in the layer -> tensor of its shape and dtype.
        """

    @abstractmethod
    def paper_form(self, layer: nn.Module, output: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        """Compute the layer's output on feature maps, without effective parameters, as the paper defines it.

        Deploying compares folded layers with it, so it must not share code with
        :meth:`effective_parameters`.

        Args:
            layer (nn.Module): The layer.
            output (Tensor): The output of the stock layer with its own parameters.
            *args (Tensor): The layer's inputs.

        Returns:
            Tensor: The output.
        """

    @classmethod
    def batch_key(cls, layer: nn.Module) -> Hashable:
        """Return a key that is equal for layers that :meth:`prepare_batch` takes together; None for others.

        Only the class that defines it uses it; a subclass does not inherit it, as it may compute something
        else. Default: None.

        Args:
            layer (nn.Module): A layer that has a child of this class.
        """
        return None

    @classmethod
    def prepare_batch(
        cls, layers: Sequence[nn.Module]
    ) -> Callable[[], dict[nn.Module, dict[str, torch.Tensor]]]:
        """Prepare to compute :meth:`effective_parameters` of several layers in fewer operations.

        Args:
            layers (Sequence[nn.Module]): Layers of one network with the same :meth:`batch_key`.

        Returns:
            callable: Returns layer -> its effective parameters, up to rounding. It may keep the modules and
            tensors that it finds in the layers: it is used until one of them is replaced, or a tensor gets
            another dtype, device or shape. Default: each layer is computed alone.
        """
        return lambda: {layer: layer.reparameterization().effective_parameters(layer) for layer in layers}

    def describe(self) -> str:
        """Return a description for reports."""
        return self.title


class BranchReparameterization(Reparameterization):
    """Branches that replace a convolution during training, and merge into one layer.

    A subclass takes the arguments of ``nn.Conv2d`` from ``in_channels`` to ``groups``, then its own options.
    It implements ``forward`` and :meth:`to_single_layer`.
    """

    #: Names of the last layers of the branches that it adds up; without them it cannot carry an ASR.
    branch_ends: Sequence[str] = ()
    #: Name of the layer inside that receives the weight of the convolution it replaces, also from a plain
    #: checkpoint.
    main_weight: str | None = None

    @abstractmethod
    def to_single_layer(self) -> nn.Module:
        """Return the one layer that computes the same in eval mode.

        If the layer has a bias but the stock one has none, :func:`mmasr.core.bias_fusion.fuse_biases` moves
        it into the normalization that follows.
        """

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Rename what a plain checkpoint has before the children look for theirs.
        for name, place in (('weight', self.main_weight), ('bias', self._main_bias)):
            if place and f'{prefix}{name}' in state_dict:
                state_dict[f'{prefix}{place}.{name}'] = state_dict.pop(f'{prefix}{name}')
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Check that a layer is a plain ``nn.Conv2d`` with zero padding.

        Args:
            name (str): Name of the layer, for the error.
            layer (nn.Module): Any module.

        Raises:
            InputError: If it is not.
        """
        if type(layer) is not nn.Conv2d or layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
            raise InputError(
                f"{name} ({type(layer).__name__}) can't become {cls.__name__}, which replaces an nn.Conv2d "
                'with zero '
                'padding that is given in numbers'
            )

    @classmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the names of the convolutions of the body that are default sites.

        These are the convolutions that :meth:`is_default_site` selects and it supports, outside branches.
        """
        blocks = [m for m in model.modules() if has_branches(m) or (m is not model and merges_itself(m))]
        inside = {part for block in blocks for part in block.modules()}
        layers = {name: model.get_submodule(name) for name in body_convolutions(model)}
        return [
            name
            for name, layer in layers.items()
            if layer not in inside and cls.is_default_site(layer) and cls.supports(name, layer)
        ]

    @classmethod
    def is_default_site(cls, layer: nn.Conv2d) -> bool:
        """Return whether a convolution that it supports is a default site. Default: if it is 3 x 3."""
        return layer.kernel_size == (3, 3)

    @classmethod
    def supports(cls, name: str, layer: nn.Conv2d) -> bool:
        """Return whether it can replace a convolution.

        Args:
            name (str): Name of the layer.
            layer (nn.Conv2d): The convolution.
        """
        try:
            cls.check(name, layer)
            with torch.device('meta'):  # without memory, time or random numbers
                cls(**_geometry(layer))
        except InputError:
            return False
        return True

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why :meth:`default_sites` finds nothing."""
        return 'has no 3 x 3 convolution'

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, **options) -> nn.Module:
        """Make one that replaces a convolution.

        The convolution's weight goes to :attr:`main_weight`, and its bias to the normalization of the same
        branch. All other parameters have their own initial values. Hooks, mode and ``requires_grad`` stay.

        Args:
            layer (nn.Conv2d): A convolution that :meth:`check` accepts.
            **options: Options of the class.

        Returns:
            nn.Module: On the convolution's device and of its dtype.

        Raises:
            InputError: If the options or the shape of the kernel are not supported.
        """
        made = cls(**_geometry(layer), **options).like(layer.weight)
        made.stock_bias = layer.bias is not None
        # The parameters themselves, which an optimizer may have already.
        if made.main_weight:
            made.get_submodule(made.main_weight).weight = layer.weight
        if made.stock_bias and made._main_bias:
            made.get_submodule(made._main_bias).bias = layer.bias
        elif made.stock_bias and made.main_weight:
            raise InputError(f'{cls.__name__} has no layer that could keep the bias of a convolution')
        move_hooks(layer, made)
        if not layer.weight.requires_grad:
            made.requires_grad_(False)
        return made.train(layer.training)

    @property
    def _main_bias(self) -> str | None:
        """Name of the layer inside that has the bias of the convolution it replaces."""
        return next(iter(branch_ends(self)), None)

    def merged(self) -> nn.Module:
        """Merge the branches.

        Returns:
            nn.Module: The layer of :meth:`to_single_layer`, in the same mode, with the same hooks. Where its
            weight replaces that of the convolution, it is the same parameter with another value, so that an
            optimizer keeps training it.
        """
        layer = self.to_single_layer().train(self.training)
        move_hooks(self, layer)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            layer.requires_grad_(False)
        kept = {'weight': self.main_weight, 'bias': self._main_bias}
        for name, place in kept.items() if type(layer) is nn.Conv2d else ():
            new, old = getattr(layer, name), getattr(self.get_submodule(place), name, None) if place else None
            if new is not None and old is not None and old.shape == new.shape:
                old.data = new.data
                setattr(layer, name, old)
        return layer


ADAPTERS['mmasr.BranchReparameterization'] = Adapter(
    branch_ends=lambda module: module.branch_ends,
    can_merge=lambda module: True,
    merge=BranchReparameterization.merged,
)


def move_like(module: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Move a module to the device and the dtype of a tensor, in place.

    Nothing is called if it has them: torch cannot move a module in ``FakeTensorMode``.

    Args:
        module (nn.Module): Any module.
        weight (Tensor): The tensor.

    Returns:
        nn.Module: ``module``.
    """
    same = all(
        tensor.device == weight.device and (tensor.dtype == weight.dtype or not tensor.is_floating_point())
        for tensor in (*module.parameters(), *module.buffers())
    )
    return module if same else module.to(weight)


#: Name in a spec or config -> class.
REPARAMETERIZATIONS: dict[str, type[Reparameterization]] = {}


def _geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments of a convolution that its branches share."""
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
    return {name: getattr(layer, name) for name in names}


def resolve(spec: dict | Callable[[int], nn.Module]) -> tuple[type[Reparameterization], dict]:
    """Return the class that a spec means, and its options.

    Args:
        spec (dict | callable): ``type``, a name in :data:`REPARAMETERIZATIONS`, and options. The name of an
            attention module, ``dict(type='SE', ratio=16)``, or a callable ``channels -> module``, is short
            for ``dict(type='ASR', attention=...)``.

    Returns:
        tuple[type[Reparameterization], dict]: The class and its options.

    Raises:
        InputError: If the name is unknown.
    """
    if callable(spec):
        return REPARAMETERIZATIONS['ASR'], {'attention': spec}
    name = registered_name(spec)
    if name in REPARAMETERIZATIONS:
        return REPARAMETERIZATIONS[name], {key: value for key, value in spec.items() if key != 'type'}
    if name in ATTENTIONS:
        return REPARAMETERIZATIONS['ASR'], {'attention': spec}
    known = ', '.join(sorted({*REPARAMETERIZATIONS, *ATTENTIONS}))
    raise InputError(f'unknown type {name!r}; known are {known}')
