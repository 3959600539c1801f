"""Noise in BatchNorm: Table 9 of ASR's paper (arXiv 2304.06345). Needs torch only."""

import torch
from torch import nn

from ..core.class_surgery import with_parameters
from ..errors import InputError


class NoisyBN(nn.BatchNorm2d):
    """BatchNorm with noise in its normalized features, [x̂ ⊙ N_a + N_b] ⊙ γ + β, in training and eval mode.

    Constant noise is the paper's Table 9. The paper says that random noise is normally distributed. Our
    reading is that it is drawn for every channel in every forward pass, N_a with mean 1 and N_b with mean 0.

    ``SyncBatchNorm.convert_sync_batchnorm`` turns it into a SyncBatchNorm without noise.

    Args:
        num_features (int): Number of channels.
        eps (float): See nn.BatchNorm2d. Default: 1e-5.
        momentum (float): See nn.BatchNorm2d. Default: 0.1.
        n_a (float | dict): N_a, or ``dict(std=s)`` to draw it with this standard deviation.
            Default: 1, no noise.
        n_b (float | dict): N_b, or ``dict(std=s)`` likewise. Default: 0, no noise.

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
        """Normalize features (N, C, H, W), with noise."""
        a, b = (self._noise(noise, mean) for noise, mean in ((self.n_a, 1), (self.n_b, 0)))
        affine = {'weight': self.weight * a, 'bias': self.bias + self.weight * b}
        return nn.BatchNorm2d.forward(with_parameters(self, nn.BatchNorm2d, affine), x)

    def _noise(self, noise: float | dict[str, float], mean: float) -> float | torch.Tensor:
        return mean + noise['std'] * torch.randn_like(self.weight) if isinstance(noise, dict) else noise

    def extra_repr(self) -> str:
        """Return the representation of nn.BatchNorm2d with the noise appended."""
        return f'{super().extra_repr()}, n_a={self.n_a}, n_b={self.n_b}'


def add_noise(
    model: nn.Module, n_a: float | dict[str, float] = 1.0, n_b: float | dict[str, float] = 0.0
) -> nn.Module:
    """Turn every BatchNorm2d of a network into a :class:`NoisyBN`, in place.

    Names, weights and statistics do not change.

    Args:
        model (nn.Module): A network, before :func:`mmasr.attach`.
        n_a (float | dict): See :class:`NoisyBN`. Default: 1, no noise.
        n_b (float | dict): See :class:`NoisyBN`. Default: 0, no noise.

    Returns:
        nn.Module: ``model``.

    Raises:
        InputError: If the network has no BatchNorm2d, or one that is an instance of a subclass (such as one
            with an ASR) or has no γ and β. The model is then unchanged.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        raise InputError(f'{type(model).__name__} has no BatchNorm2d to add noise to')
    for name, norm in norms.items():
        if type(norm) is not nn.BatchNorm2d or not norm.affine:
            raise InputError(
                f"{name} ({type(norm).__name__}) can't become a NoisyBN: it is not a plain BatchNorm2d "
                'with γ and β'
            )
    for norm in norms.values():
        norm.__class__, norm.n_a, norm.n_b = NoisyBN, n_a, n_b
    return model
