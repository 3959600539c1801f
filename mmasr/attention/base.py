"""What every attention module κ shares."""

from collections.abc import Hashable, Sequence

import torch
from torch import nn


class ChannelAttention(nn.Module):
    """A channel attention module κ: computes one attention value per channel and image, and multiplies by it.

    Abstract: every attention module implements :meth:`logits` and :meth:`init_weights`. One that has a static method
    ``logits_of``, ``(modules, x) -> (N, C)``, the gate's inputs of N modules that are alike, each for its own of N features of
    shape (N, C, 1, 1), is computed together with others in ASR. A subclass does not inherit it.

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
        return self.gated(self.logits(x)).view(*x.shape[:2], 1, 1)

    def gated(self, logits: torch.Tensor) -> torch.Tensor:
        """Map the gate's input to attention values, of the same shape."""
        gate = getattr(logits, self.gate)()
        return 2 * gate if self.init_identity else gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, H, W) by their attention values."""
        return x * self.weights(x)


def batch_kind(module: nn.Module) -> Hashable:
    """What attention modules have in common that can be computed together.

    Args:
        module (nn.Module): An attention module.

    Returns:
        Hashable: Equal for those that are alike; None if it is computed by itself: it does not say how, or its layers are
        not torch's own as they were made (an adapter in one of them, a hook on it).
    """
    kind, layers = type(module), [*module._modules.values()]
    if 'logits_of' not in vars(kind) or not all(type(layer) in _LAYERS for layer in layers):
        return None
    if any(m._forward_pre_hooks or m._forward_hooks or 'forward' in m.__dict__ for m in (module, *layers)):
        return None
    shapes = [p.shape for m in (module, *layers) for p in m._parameters.values() if p is not None]
    return kind, module.gate, module.init_identity, *shapes


_LAYERS = nn.Linear, nn.Conv1d, nn.BatchNorm1d


class _Linears(torch.autograd.Function):
    """A row for each of several linear layers. Only the weights themselves are kept for the backward pass, not the copy where
    they are together."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, bias: torch.Tensor | None, *weights: torch.Tensor) -> torch.Tensor:
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, *weights)
        return _linears(x, bias, *weights)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        back = torch.bmm(gradient[:, None], torch.stack(weights))[:, 0]
        return back, gradient if ctx.has_bias else None, *(gradient[..., None] * x[:, None]).unbind()


def _linears(x: torch.Tensor, bias: torch.Tensor | None, *weights: torch.Tensor) -> torch.Tensor:
    stacked, x = torch.stack(weights), x[..., None]
    return (torch.bmm(stacked, x) if bias is None else torch.baddbmm(bias[..., None], stacked, x))[..., 0]


def linears(layers: Sequence[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    """Apply n linear layers to a row each: (n, C) to (n, C')."""
    bias = None if layers[0].bias is None else torch.stack([layer.bias for layer in layers])
    # A function that torch.func's transforms follow looks at its signature in every call, which takes longer than all of this.
    apply = _linears if torch._C._are_functorch_transforms_active() else _Linears.apply
    return apply(x, bias, *(layer.weight for layer in layers))


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """Global average pooling, (N, C, H, W) to (N, C)."""
    # ASR's ψ is one position, and the mean of one value would take time in every training step.
    return x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3))


def hidden_channels(channels: int, ratio: int) -> int:
    """Width of the bottleneck of SE, SPA and CBAM: C / ratio, rounded, at least 1."""
    return max(1, round(channels / ratio))
