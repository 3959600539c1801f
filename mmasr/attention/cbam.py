"""CBAM: Convolutional Block Attention Module, Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521."""

import torch
from torch import nn

from .base import ChannelAttention, hidden_channels


class CBAM(ChannelAttention):
    """Convolutional block attention: channel weights, then a spatial map.

    The channel weights are σ(W₂ relu(W₁ GAP(x)) + W₂ relu(W₁ GMP(x))) (equation 2 of the paper). The spatial
    map is computed from the channel-weighted features (equation 3).

    The spatial map differs for every position and every image, so no constant can replace it. Use CBAM as
    ordinary attention; ASR rejects it.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the hidden layer has max(1, round(C / ratio)) units. Default: 16.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`; the latter applies to both
            parts.
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
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        for layer in (self.fc1, self.fc2, self.conv):
            layer.reset_parameters()
        if self.init_identity:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.conv.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the input of the channel weights' gate (N, C)."""
        squeezed = torch.stack([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))])
        return self.fc2(self.fc1(squeezed).relu()).sum(dim=0)

    def spatial_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map channel-weighted features (N, C, H, W) to the spatial map (N, 1, H, W)."""
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        gate = self.conv(pooled).sigmoid()
        return 2 * gate if self.init_identity else gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, H, W) by their channel weights, then by the spatial map."""
        x = super().forward(x)
        return x * self.spatial_weights(x)
