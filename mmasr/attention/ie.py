"""Instance Enhancement Batch Normalization, Liang et al., AAAI 2020, https://arxiv.org/abs/1908.04008."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .base import ChannelAttention, squeeze


class IE(ChannelAttention):
    """Instance enhancement: σ(a · GAP(x) + b), where every channel has its own a and b.

    Args:
        channels (int): Number of channels C.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`; with ``init_identity``, b
            starts at 0 instead of -1.
    """

    def __init__(self, channels: int, **options) -> None:
        super().__init__(**options)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, 0.0 if self.init_identity else -1.0)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        return self.weight * squeeze(x) + self.bias

    @staticmethod
    def prepare_logits(modules: Sequence['IE'], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepare to compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[IE]): δ rows of modules; all rows have the same shapes.
            rows (int): δ.

        Returns:
            callable: Maps their features at one position, (δ, ΣC), to their gates' inputs, (δ, ΣC).
        """
        weights, biases = [m.weight for m in modules], [m.bias for m in modules]
        return lambda x: torch.cat(weights).view_as(x) * x + torch.cat(biases).view_as(x)
