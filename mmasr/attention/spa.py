"""SPANet: Spatial Pyramid Attention Network, Guo et al., ICME 2020."""

from collections.abc import Callable, Sequence

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
    def prepare_logits(modules: Sequence['SPA'], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepare to compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[SPA]): δ rows of modules; all rows have the same shapes.
            rows (int): δ.

        Returns:
            callable: Maps their features at one position, (δ, ΣC), to their gates' inputs, (δ, ΣC).
        """
        channels = [m.fc2.out_features for m in modules]
        first, second = (batched_linear([getattr(m, name) for m in modules], rows) for name in ('fc1', 'fc2'))

        def compute(x: torch.Tensor) -> torch.Tensor:
            parts = x.flatten().split(channels)
            cells = torch.cat([part.repeat_interleave(times) for part in parts for times in (1, 4, 16)])
            return second(first(cells.view(rows, -1)).relu())

        return compute
