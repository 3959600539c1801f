"""SRM: A Style-based Recalibration Module, Lee et al., ICCV 2019, https://arxiv.org/abs/1903.10829."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .base import ChannelAttention, squeeze


class SRM(ChannelAttention):
    """Style-based recalibration: σ(BN(w_mean · mean(x) + w_std · std(x))) per channel.

    The standard deviation is that of the population, √(var + 1e-5), so that it is defined for one position.
    A batch of one has nothing to normalise over: BN then uses its running statistics and leaves them as
    they are. That is how ASR calls it, so there the statistics keep their initial values 0 and 1, in
    training and evaluation alike.

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
        nn.init.zeros_(self.cfc)
        self.bn.reset_parameters()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        std = (x.var(dim=(2, 3), correction=0) + self.eps).sqrt()
        style = self.cfc[:, 0] * squeeze(x) + self.cfc[:, 1] * std
        if len(style) > 1:
            return self.bn(style)
        bn = self.bn
        return F.batch_norm(style, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    @staticmethod
    def logits_of(modules: Sequence['SRM'], x: torch.Tensor) -> torch.Tensor:
        mean, std = torch.cat([m.cfc for m in modules]).view(*x.shape, 2).unbind(-1)
        style = mean * x + std * SRM.eps**0.5  # one position has no variance
        names = 'running_mean', 'running_var', 'weight', 'bias'
        affine = [torch.cat([getattr(m.bn, name) for m in modules]) for name in names]
        return F.batch_norm(style.view(1, -1), *affine, eps=modules[0].bn.eps).view_as(style)
