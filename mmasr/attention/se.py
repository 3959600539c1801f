"""Squeeze-and-Excitation Networks, Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .base import ChannelAttention, batched_linear, hidden_channels, squeeze


class SE(ChannelAttention):
    """Squeeze and excitation: σ(W₂ relu(W₁ GAP(x) + b₁) + b₂).

    This is equation 3 of the paper, plus biases. ASR's networks with SE have these biases, as the parameter
    counts in its Table 1 show.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the hidden layer has max(1, round(C / ratio)) units. Default: 16.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`.
    """

    def __init__(self, channels: int, ratio: int = 16, **options) -> None:
        super().__init__(**options)
        hidden = hidden_channels(channels, ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        return self.fc2(self.fc1(squeeze(x)).relu())

    @staticmethod
    def prepare_logits(modules: Sequence['SE'], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepare to compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[SE]): δ rows of modules; all rows have the same shapes.
            rows (int): δ.

        Returns:
            callable: Maps their features at one position, (δ, ΣC), to their gates' inputs, (δ, ΣC).
        """
        first, second = (batched_linear([getattr(m, name) for m in modules], rows) for name in ('fc1', 'fc2'))
        return lambda x: second(first(x).relu())
