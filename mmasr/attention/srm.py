"""SRM: A Style-based Recalibration Module, Lee et al., ICCV 2019, https://arxiv.org/abs/1903.10829."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import batch_norm

from .base import ChannelAttention, squeeze


class SRM(ChannelAttention):
    """Style-based recalibration: σ(BN(w_mean · mean(x) + w_std · std(x))) per channel.

    std is the population standard deviation, √(var + 1e-5), so it is defined for a single position.

    A batch of one cannot be normalized by its own statistics: BN then uses the running statistics and does
    not update them. ASR calls it this way, so there the statistics keep their initial values 0 and 1, in
    training and in eval mode.

    Args:
        channels (int): Number of channels C.
        **options: ``gate`` and ``init_identity`` of :class:`ChannelAttention`.
    """

    eps = 1e-5

    def __init__(self, channels: int, **options) -> None:
        super().__init__(**options)
        self.cfc = nn.Parameter(torch.empty(channels, 2))
        self.bn = nn.BatchNorm1d(channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values; see :meth:`ChannelAttention.init_weights`."""
        nn.init.zeros_(self.cfc)
        self.bn.reset_parameters()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        std = (x.var(dim=(2, 3), correction=0) + self.eps).sqrt()
        style = self.cfc[:, 0] * squeeze(x) + self.cfc[:, 1] * std
        if len(style) > 1:
            return self.bn(style)
        bn = self.bn
        return batch_norm(style, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    @staticmethod
    def prepare_logits(modules: Sequence['SRM'], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepare to compute the :meth:`logits` of several modules; see :class:`ChannelAttention`.

        Args:
            modules (Sequence[SRM]): δ rows of modules; all rows have the same shapes.
            rows (int): δ.

        Returns:
            callable: Maps their features at one position, (δ, ΣC), to their gates' inputs, (δ, ΣC).
        """
        names = 'running_mean', 'running_var', 'weight', 'bias'
        cfc, affine = [m.cfc for m in modules], [[getattr(m.bn, name) for m in modules] for name in names]

        def compute(x: torch.Tensor) -> torch.Tensor:
            mean, std = torch.cat(cfc).view(*x.shape, 2).unbind(-1)
            style = mean * x + std * SRM.eps**0.5  # the variance of one position is 0
            style = batch_norm(style.view(1, -1), *map(torch.cat, affine), eps=modules[0].bn.eps)
            return style.view_as(x)

        return compute
