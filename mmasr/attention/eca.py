"""ECA-Net: Efficient Channel Attention, Wang et al., CVPR 2020, https://arxiv.org/abs/1910.03151."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv1d

from .base import ChannelAttention, split_by_shape, squeeze


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
    def logits_of(modules: Sequence['ECA'], x: torch.Tensor) -> torch.Tensor:
        """Compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[ECA]): δ rows of modules; all rows have the same shapes.
            x (Tensor): Their features at one position, (δ, ΣC).

        Returns:
            Tensor: Their gates' inputs, (δ, ΣC).
        """
        logits, channels = [], [m.channels for m in modules]
        shapes = [(m.channels, m.conv.weight.shape) for m in modules]
        for numbers, part in split_by_shape(x, shapes, channels):
            kernels = torch.cat([modules[number].conv.weight for number in numbers])
            padding = modules[numbers[0]].conv.padding
            convolved = conv1d(part[None], kernels, padding=padding, groups=len(numbers))
            logits.append(convolved.view(len(x), -1))
        return torch.cat(logits, dim=1)
