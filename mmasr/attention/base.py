"""What every attention module κ shares."""

import torch
from torch import nn


class ChannelAttention(nn.Module):
    """A channel attention module κ: computes one attention value per channel and image, and multiplies by it.

    Abstract: every attention module implements :meth:`logits` and :meth:`init_weights`.

    Args:
        gate (str): ``'sigmoid'``, or ``'tanh'`` as in the paper's vision transformers. Default: ``'sigmoid'``.
        init_identity (bool): Start as the identity, so that the module can be put into a pretrained
            network: the last layer starts at zero and the gate is divided by σ(0) = 1/2. Default: False.

    Raises:
        ValueError: If there is no such gate, or ``init_identity`` would divide by tanh(0) = 0.
    """

    #: Whether it also multiplies by a spatial map, which no constant per channel can stand for.
    spatial = False

    def __init__(self, gate: str = 'sigmoid', init_identity: bool = False) -> None:
        super().__init__()
        if gate not in ('sigmoid', 'tanh'):
            raise ValueError(f'unknown gate {gate!r}; known are sigmoid and tanh')
        if init_identity and gate == 'tanh':
            raise ValueError('init_identity divides by the gate at 0, which is 0 for tanh; leave it off or use the sigmoid')
        self.gate = gate
        self.init_identity = init_identity

    def init_weights(self) -> None:
        """Give every parameter its initial value. OpenMMLab calls this after the ``init_cfg`` of the
        surrounding network, which reaches into everything inside it, has been applied."""
        raise NotImplementedError

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""
        raise NotImplementedError

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to attention values (N, C, 1, 1)."""
        gate = getattr(self.logits(x), self.gate)().view(*x.shape[:2], 1, 1)
        return 2 * gate if self.init_identity else gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, H, W) by their attention values."""
        return x * self.weights(x)


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """Global average pooling, (N, C, H, W) to (N, C)."""
    # ASR's ψ is one position, and the mean of one value would take time in every training step.
    return x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3))


def hidden_channels(channels: int, ratio: int) -> int:
    """Width of the bottleneck of SE, SPA and CBAM: C / ratio, rounded, at least 1."""
    return max(1, round(channels / ratio))
