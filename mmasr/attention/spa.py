"""SPANet: Spatial Pyramid Attention Network, Guo et al., ICME 2020."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from .base import ChannelAttention, batched_linear, hidden_channels


class SPA(ChannelAttention):
    """Spatial pyramid attention: σ(W₂ relu(W₁ p)), where p is a pyramid of average pools of x.

    The pools have 1×1, 2×2 and 4×4 cells, so p has 21·C values.

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
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.fc2.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        pyramid = torch.cat([adaptive_avg_pool2d(x, cells).flatten(1) for cells in (1, 2, 4)], dim=1)
        return self.fc2(self.fc1(pyramid).relu())

    @staticmethod
    def logits_of(modules: Sequence['SPA'], x: torch.Tensor) -> torch.Tensor:
        """Compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[SPA]): δ rows of modules; all rows have the same shapes.
            x (Tensor): Their features at one position, (δ, ΣC).

        Returns:
            Tensor: Their gates' inputs, (δ, ΣC).
        """
        channels = [m.fc2.out_features for m in modules]
        parts = x.flatten().split(channels)
        cells = torch.cat([part.repeat_interleave(times) for part in parts for times in (1, 4, 16)])
        hidden = batched_linear([m.fc1 for m in modules], cells.view(len(x), -1)).relu()
        return batched_linear([m.fc2 for m in modules], hidden)
