"""Instance Enhancement Batch Normalization, Liang et al., AAAI 2020, https://arxiv.org/abs/1908.04008."""

from collections.abc import Sequence

import torch
from torch import nn

from .base import ChannelAttention, squeeze


class IE(ChannelAttention):
    """Instance enhancement: σ(a · GAP(x) + b), an affine map of its own for every channel.

    Args:
        channels (int): Number of channels C.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`;
            with the latter b starts at 0 instead of -1.
    """

    def __init__(self, channels: int, **options) -> None:
        super().__init__(**options)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, 0.0 if self.init_identity else -1.0)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * squeeze(x) + self.bias

    @staticmethod
    def logits_of(modules: Sequence['IE'], x: torch.Tensor) -> torch.Tensor:
        return torch.cat([m.weight for m in modules]).view_as(x) * x + torch.cat([m.bias for m in modules]).view_as(x)
