"""ECA-Net: Efficient Channel Attention, Wang et al., CVPR 2020, https://arxiv.org/abs/1910.03151."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .base import ChannelAttention, runs, squeeze


class ECA(ChannelAttention):
    """Efficient channel attention: σ(conv1d over the channel axis of GAP(x)).

    The kernel has |log₂(C) / 2 + 1/2| taps, made odd (the paper's adaptive kernel size
    with γ = 2, b = 1), at least 3.

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
        self.conv.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.conv.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(squeeze(x)[:, None])[:, 0]

    @staticmethod
    def logits_of(modules: Sequence['ECA'], x: torch.Tensor) -> torch.Tensor:
        logits, channels = [], [m.channels for m in modules]
        shapes = [(m.channels, m.conv.weight.shape) for m in modules]
        for numbers, part in runs(x, shapes, channels):
            kernels = torch.cat([modules[number].conv.weight for number in numbers])
            padding = modules[numbers[0]].conv.padding
            logits.append(F.conv1d(part[None], kernels, padding=padding, groups=len(numbers)).view(len(x), -1))
        return torch.cat(logits, dim=1)
