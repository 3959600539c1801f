"""CBAM: Convolutional Block Attention Module, Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521."""

import torch
from torch import nn

from .base import ChannelAttention, hidden_channels


class CBAM(ChannelAttention):
    """Channel weights σ(W₂ relu(W₁ GAP(x)) + W₂ relu(W₁ GMP(x))) (equation 2 of the paper), then a spatial map of what they
    leave (equation 3).

    The map differs from position to position and from image to image, so no constant can stand in for it:
    CBAM is for use as ordinary attention, and ASR refuses it.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the hidden layer has max(1, round(C / ratio)) units. Default: 16.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`,
            the latter for both parts.
    """

    spatial = True

    def __init__(self, channels: int, ratio: int = 16, **options) -> None:
        super().__init__(**options)
        hidden = hidden_channels(channels, ratio)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        for layer in (self.fc1, self.fc2, self.conv):
            layer.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.conv.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = torch.stack([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))])
        return self.fc2(self.fc1(squeezed).relu()).sum(dim=0)

    def spatial_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map channel-weighted features (N, C, H, W) to a map (N, 1, H, W)."""
        gate = self.conv(torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)).sigmoid()
        return 2 * gate if self.init_identity else gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x * self.spatial_weights(x)
