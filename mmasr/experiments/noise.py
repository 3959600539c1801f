"""Noise in BatchNorm: Table 9 of ASR's paper (arXiv 2304.06345). Needs torch only."""

import torch
from torch import nn

from ..core.surgery import twin


class NoisyBN(nn.BatchNorm2d):
    """A BatchNorm with noise in what it normalizes: [x̂ ⊙ N_a + N_b] ⊙ γ + β, in training and evaluation.

    Constant noise is the paper's Table 9. Of random noise the paper says that it is normal; that it is drawn for every channel
    in every forward pass, N_a around 1 and N_b around 0, is our reading. ``SyncBatchNorm.convert_sync_batchnorm`` makes
    BatchNorms without noise of it.

    Args:
        num_features (int): Number of channels.
        eps (float): As of nn.BatchNorm2d. Default: 1e-5.
        momentum (float): As of nn.BatchNorm2d. Default: 0.1.
        n_a (float | dict): N_a, or ``dict(std=s)`` to draw it. Default: 1, no noise.
        n_b (float | dict): N_b, likewise. Default: 0, no noise.

    Example:
        >>> norm = NoisyBN(4, n_a=0.8, n_b=0.5)
        >>> x = torch.randn(2, 4, 3, 3)
        >>> torch.allclose(norm(x), 0.8 * torch.nn.BatchNorm2d(4)(x) + 0.5, atol=1e-6)
        True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        n_a: float | dict[str, float] = 1.0,
        n_b: float | dict[str, float] = 0.0,
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.n_a, self.n_b = n_a, n_b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize features (N, C, H, W)."""
        a, b = (self._noise(noise, mean) for noise, mean in ((self.n_a, 1), (self.n_b, 0)))
        affine = {'weight': self.weight * a, 'bias': self.bias + self.weight * b}
        return nn.BatchNorm2d.forward(twin(self, nn.BatchNorm2d, affine), x)

    def _noise(self, noise: float | dict[str, float], mean: float) -> float | torch.Tensor:
        return mean + noise['std'] * torch.randn_like(self.weight) if isinstance(noise, dict) else noise

    def extra_repr(self) -> str:
        """With the noise."""
        return f'{super().extra_repr()}, n_a={self.n_a}, n_b={self.n_b}'


def add_noise(model: nn.Module, n_a: float | dict[str, float] = 1.0, n_b: float | dict[str, float] = 0.0) -> nn.Module:
    """Make every BatchNorm2d of a network a :class:`NoisyBN`, in place; names, weights and statistics stay.

    Args:
        model (nn.Module): A network, before :func:`mmasr.attach`.
        n_a (float | dict): As of NoisyBN.
        n_b (float | dict): As of NoisyBN.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If there is a BatchNorm2d that is something more already, such as one with an ASR, or without γ and β; or
            none at all. The model is then as it was.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        raise ValueError(f'{type(model).__name__} has no BatchNorm2d to add noise to')
    for name, norm in norms.items():
        if type(norm) is not nn.BatchNorm2d or not norm.affine:
            raise ValueError(f"{name} ({type(norm).__name__}) can't become a NoisyBN: it is no plain BatchNorm2d with γ and β")
    for norm in norms.values():
        norm.__class__, norm.n_a, norm.n_b = NoisyBN, n_a, n_b
    return model
