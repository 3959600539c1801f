"""What a layer's parameters are computed from while it trains. Needs torch only."""

from collections.abc import Sequence

import torch
from torch import nn


class Computed(nn.Module):
    """Base of a child of a layer from which the parameters that the layer runs with are computed.

    One of the two kinds of re-parameterization (the other is :class:`mmasr.core.merge.Merging`). The layer, a
    :class:`mmasr.core.host.Host`, keeps its class, its own parameters and their names. It trains with :meth:`tensors` in the
    place of its parameters, and folding writes those same tensors back, so nothing differs, not by a bit.

    A subclass implements :meth:`tensors`, :meth:`init_weights`, and what :func:`mmasr.attach` asks of a kind: :meth:`check`,
    :meth:`sites` and :meth:`of`.
    """

    #: Name of the child in its layer, and so in the state dict.
    child: str
    #: What it is called.
    title: str

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """The parameters that a layer runs with: name in the layer -> tensor of the parameter's shape and dtype."""
        raise NotImplementedError

    @classmethod
    def together(cls, hosts: Sequence[nn.Module]) -> dict[nn.Module, dict[str, torch.Tensor]]:
        """What :meth:`tensors` gives for several layers that have one each, in fewer operations.

        A subclass does not inherit it.

        Args:
            hosts (Sequence[nn.Module]): The layers, of one network.

        Returns:
            dict[nn.Module, dict[str, Tensor]]: For each layer what :meth:`tensors` gives, up to rounding. What is left out is
            computed by itself; by default that is all.
        """
        return {}

    def init_weights(self) -> None:
        """Give every parameter its initial value. OpenMMLab's ``init_weights`` comes by here after it has initialised what is
        around."""
        raise NotImplementedError

    def init_layer(self, layer: nn.Module) -> None:
        """Give the layer's own parameters the initial values that they need beside it; it comes after :meth:`init_weights`.
        Default: they stay as they are."""

    def describe(self) -> str:
        """What it is, for a report."""
        return self.title

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Raise a ValueError, with the layer's name, if a layer can't carry it."""
        raise NotImplementedError

    @classmethod
    def sites(cls, model: nn.Module) -> list[str]:
        """Names of the layers of a network that carry one by default."""
        raise NotImplementedError

    @staticmethod
    def no_sites(model: nn.Module) -> str:
        """What to say of a network in which :meth:`sites` finds nothing."""
        return 'is no network whose sites are known'

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """The options that it takes at each of some layers of a network, where these depend on what is around. Default: the
        same everywhere."""
        return dict.fromkeys(names, options)

    @classmethod
    def of(cls, layer: nn.Module, **options) -> 'Computed':
        """Make one for a layer, of its device and dtype."""
        raise NotImplementedError

    @classmethod
    def deployed(cls, options: dict, network: nn.Module | None) -> dict | None:
        """What a config says in the place of its options once it is folded: nothing, as the layer is a stock one again."""
        return None
