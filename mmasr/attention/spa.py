"""SPANet: Spatial Pyramid Attention Network, Guo et al., ICME 2020."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .base import ChannelAttention, hidden_channels, linears


class SPA(ChannelAttention):
    """Spatial pyramid attention: σ(W₂ relu(W₁ p)), p = average pools of x to 1×1, 2×2 and 4×4, 21·C values.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the hidden layer has max(1, round(C / ratio)) units. Default: 16.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`.
    """

    def __init__(self, channels: int, ratio: int = 16, **options) -> None:
        super().__init__(**options)
        hidden = hidden_channels(channels, ratio)
        self.fc1 = nn.Linear(21 * channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.fc2.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        pyramid = torch.cat([F.adaptive_avg_pool2d(x, cells).flatten(1) for cells in (1, 2, 4)], dim=1)
        return self.fc2(self.fc1(pyramid).relu())

    @staticmethod
    def logits_of(modules: Sequence['SPA'], x: torch.Tensor) -> torch.Tensor:
        channels = [m.fc2.out_features for m in modules]
        parts = x.flatten().split(channels)
        cells = torch.cat([part.repeat_interleave(times) for part in parts for times in (1, 4, 16)])
        return linears([m.fc2 for m in modules], linears([m.fc1 for m in modules], cells.view(len(x), -1)).relu())
