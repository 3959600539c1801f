"""What every attention module κ shares."""

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby

import torch
from torch import nn
from torch.autograd.function import FunctionCtx


class ChannelAttention(nn.Module):
    """A channel attention module κ: computes one attention value per channel and image, and multiplies by it.

    Abstract: every attention module implements :meth:`logits` and :meth:`init_weights`. One that has a static method
    ``logits_of`` is computed together with others in ASR: ``(modules, x) -> (δ, ΣC)``, the gate's inputs of modules that are
    alike but for their shapes, δ rows of them of the same shapes, for features at one position, x of shape (δ, ΣC), the C
    channels of a module after those of the one before it. A subclass does not inherit it.

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
        Hashable: Equal for those that are alike but for their shapes; None if it is computed by itself: it does not say how, or
        its layers are not torch's own as they were made (an adapter in one of them, a hook on it).
    """
    kind, layers = type(module), [*module._modules.values()]
    if 'logits_of' not in vars(kind) or not all(type(layer) in _LAYERS for layer in layers):
        return None
    if any(m._forward_pre_hooks or m._forward_hooks or 'forward' in m.__dict__ for m in (module, *layers)):
        return None
    return kind, module.gate, module.init_identity, *[p is None for m in layers for p in m._parameters.values()]


_LAYERS = nn.Linear, nn.Conv1d, nn.BatchNorm1d


def runs(x: torch.Tensor, shapes: Sequence[Hashable], widths: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Take apart what modules are given, as few parts as there are consecutive modules of the same shape.

    Args:
        x (Tensor): Their inputs, or the like, of shape (δ, ΣC).
        shapes (Sequence[Hashable]): The shape of every module, δ rows of the same.
        widths (Sequence[int]): The number C of every module.

    Yields:
        tuple[list[int], Tensor]: Numbers of N modules of the same shape, and what they are given, of shape (N, C).
    """
    n, start = len(shapes) // len(x), 0
    for _, equal in groupby(range(n), shapes.__getitem__):
        numbers = list(equal)
        width = widths[numbers[0]]
        part = x.narrow(1, start, len(numbers) * width)
        start += len(numbers) * width
        yield [n * row + number for row in range(len(x)) for number in numbers], part.reshape(-1, width)


class _Linears(torch.autograd.Function):
    """Only the weights themselves are kept for the backward pass, not the copy in which they are together."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *weights)
        return _linears(x, *weights)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, *weights = ctx.saved_tensors
        shapes = [weight.shape for weight in weights]
        outputs, inputs = zip(*shapes, strict=True)
        back, products = [], {}
        for (numbers, part), (_, d) in zip(runs(x, shapes, inputs), runs(gradient, shapes, outputs), strict=True):
            back.append(torch.bmm(d[:, None], torch.stack([weights[number] for number in numbers])).view(len(x), -1))
            products.update(zip(numbers, (d[..., None] * part[:, None]).unbind(), strict=True))
        return torch.cat(back, dim=1), *[products[number] for number in range(len(weights))]


def _linears(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    shapes = [weight.shape for weight in weights]
    outputs = [
        torch.bmm(part[:, None], torch.stack([weights[number] for number in numbers]).mT).view(len(x), -1)
        for numbers, part in runs(x, shapes, [inputs for _, inputs in shapes])
    ]
    return torch.cat(outputs, dim=1)


def linears(layers: Sequence[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    """Apply linear layers, to a part of x each.

    Args:
        layers (Sequence[nn.Linear]): δ rows of layers, every row of the same shapes; all of them have a bias, or none.
        x (Tensor): Their inputs, of shape (δ, ΣC).

    Returns:
        Tensor: Their outputs, of shape (δ, ΣC').
    """
    # A function that torch.func's transforms follow looks at its signature in every call, which takes longer than all of this.
    apply = _linears if torch._C._are_functorch_transforms_active() else _Linears.apply
    outputs = apply(x, *[layer.weight for layer in layers])
    return outputs if layers[0].bias is None else outputs + torch.cat([layer.bias for layer in layers]).view_as(outputs)


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """Global average pooling, (N, C, H, W) to (N, C)."""
    # ASR's ψ is one position, and the mean of one value would take time in every training step.
    return x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3))


def hidden_channels(channels: int, ratio: int) -> int:
    """Width of the bottleneck of SE, SPA and CBAM: C / ratio, rounded, at least 1."""
    return max(1, round(channels / ratio))
