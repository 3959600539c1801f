"""ECA-Net: Efficient Channel Attention, Wang et al., CVPR 2020, https://arxiv.org/abs/1910.03151."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import conv1d

from .base import ChannelAttention, Split, squeeze


class ECA(ChannelAttention):
    """Efficient channel attention: σ(conv1d over the channel axis of GAP(x)).

    The kernel size is |log₂(C) / 2 + 1/2| (the paper's adaptive size with γ = 2 and b = 1). It is truncated
    to an integer, made odd by adding 1 if it is even, and is at least 3.

    Args:
        channels (int): Number of channels C.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`.
    """

    def __init__(self, channels: int, **options) -> None:
        super().__init__(**options)
        self.channels = channels
        taps = int(abs(math.log2(channels) / 2 + 0.5))
        taps = max(3, taps if taps % 2 else taps + 1)
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        self.conv.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.conv.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        return self.conv(squeeze(x)[:, None])[:, 0]

    @staticmethod
    def prepare_logits(modules: Sequence['ECA'], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepare to compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[ECA]): δ rows of modules; all rows have the same shapes.
            rows (int): δ.

        Returns:
            callable: Maps their features at one position, (δ, ΣC), to their gates' inputs, (δ, ΣC).
        """
        shapes, channels = [(m.channels, m.conv.weight.shape) for m in modules], [m.channels for m in modules]
        split = Split(shapes, channels, rows)
        layers = [[modules[number].conv for number in numbers] for numbers in split.numbers]
        kernels = [[layer.weight for layer in run] for run in layers]

        def compute(x: torch.Tensor) -> torch.Tensor:
            logits = [
                conv1d(part[None], torch.cat(weights), padding=run[0].padding, groups=len(run)).view(rows, -1)
                for part, weights, run in zip(split(x), kernels, layers, strict=True)
            ]
            return torch.cat(logits, dim=1)

        return compute
