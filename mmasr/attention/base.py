"""Base class of the channel attention modules κ, and functions that they share. Needs torch only."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from ..errors import InputError


class ChannelAttention(nn.Module, ABC):
    """Channel attention module κ: computes one value per channel and image, and scales the features by it.

    A subclass implements :meth:`logits` and :meth:`init_weights`.

    It may also define a static method ``prepare_logits(modules, rows)``, with which ASR computes several
    modules in one batch. The modules form δ rows; all rows have the same shapes. The result is a function of
    ``x``, of shape (δ, ΣC): their features at one position, the channels of one module after those of the
    previous one. It returns their gates' inputs, in the same shape. It may keep the parameters that it finds
    in the modules. A subclass does not inherit ``prepare_logits``, as it may compute something else.

    Args:
        gate (str): ``'sigmoid'``, or ``'tanh'`` as in the paper's vision transformers.
            Default: ``'sigmoid'``.
        init_identity (bool): Start as the identity, so that the module can be inserted into a pretrained
            network. The last layer starts at zero, and the gate is divided by σ(0) = 1/2. Default: False.

    Raises:
        InputError: If the gate is unknown, or ``init_identity`` would divide by tanh(0) = 0.
    """

    #: Whether it also multiplies by a spatial map, which no constant per channel can replace.
    spatial = False

    def __init__(self, gate: str = 'sigmoid', init_identity: bool = False) -> None:
        super().__init__()
        if gate not in ('sigmoid', 'tanh'):
            raise InputError(f'unknown gate {gate!r}; known are sigmoid and tanh')
        if init_identity and gate == 'tanh':
            raise InputError(
                'init_identity divides by the gate at 0, and tanh is 0 there; turn it off or use the sigmoid'
            )
        self.gate = gate
        self.init_identity = init_identity

    @abstractmethod
    def init_weights(self) -> None:
        """Set the initial value of every parameter.

        OpenMMLab calls this after it has applied the ``init_cfg`` of the surrounding network, which reaches
        every module inside.
        """

    @abstractmethod
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to the gate's input (N, C)."""

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to attention values (N, C, 1, 1)."""
        return self.gated(self.logits(x)).view(*x.shape[:2], 1, 1)

    def gated(self, logits: torch.Tensor) -> torch.Tensor:
        """Map the gate's input to attention values of the same shape."""
        gate = getattr(logits, self.gate)()
        return 2 * gate if self.init_identity else gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, H, W) by their attention values."""
        return x * self.weights(x)


#: Layers inside attention modules that ``prepare_logits`` supports.
_LAYERS = nn.Linear, nn.Conv1d, nn.BatchNorm1d


def batch_key(module: nn.Module) -> Hashable:
    """Return a key that is equal for attention modules that can be computed in one batch; None for others.

    The shapes of the modules may differ. A module is computed separately if its class does not define
    ``prepare_logits``, or if its layers are not the original layers of torch (an adapter replaced one, or it
    has a hook).
    """
    kind, layers = type(module), [*module._modules.values()]
    if 'prepare_logits' not in vars(kind) or not all(type(layer) in _LAYERS for layer in layers):
        return None
    if any(m._forward_pre_hooks or m._forward_hooks or 'forward' in m.__dict__ for m in (module, *layers)):
        return None
    return (
        kind,
        module.gate,
        module.init_identity,
        *[p is None for m in layers for p in m._parameters.values()],
    )


class Split:
    """Split of the concatenated inputs of modules into one part per run of modules of equal shape.

    Args:
        shapes (Sequence[Hashable]): Shape of every module, δ rows that are equal.
        widths (Sequence[int]): Number C of channels of every module in the inputs.
        rows (int): δ.
    """

    def __init__(self, shapes: Sequence[Hashable], widths: Sequence[int], rows: int) -> None:
        n = len(shapes) // rows
        runs = [[*equal] for _, equal in groupby(range(n), shapes.__getitem__)]
        #: Indices of the modules of every run, in all rows.
        self.numbers = [[n * row + number for row in range(rows) for number in run] for run in runs]
        self.widths = [widths[run[0]] for run in runs]
        self.sizes = [len(run) * width for run, width in zip(runs, self.widths, strict=True)]

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the part of every run, of shape (N, C) for N modules, of x of shape (δ, ΣC)."""
        parts = x.split(self.sizes, dim=1)
        return [part.reshape(-1, width) for part, width in zip(parts, self.widths, strict=True)]


class _BatchedLinear(torch.autograd.Function):
    """Products of :func:`batched_linear` that save the weights for the backward pass, but no stacked copy."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, splits: tuple[Split, Split], x: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.splits = splits
        ctx.save_for_backward(x, *weights)
        return _products(splits, x, *weights)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        inputs, outputs = ctx.splits
        back, products = [], {}
        for numbers, part, d in zip(inputs.numbers, inputs(x), outputs(gradient), strict=True):
            stacked = torch.stack([weights[number] for number in numbers])
            back.append(torch.bmm(d[:, None], stacked).view(len(x), -1))
            products.update(zip(numbers, (d[..., None] * part[:, None]).unbind(), strict=True))
        return None, torch.cat(back, dim=1), *[products[number] for number in range(len(weights))]


def _products(splits: tuple[Split, Split], x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    inputs, _ = splits
    outputs = []
    for numbers, part in zip(inputs.numbers, inputs(x), strict=True):
        stacked = torch.stack([weights[number] for number in numbers])
        outputs.append(torch.bmm(part[:, None], stacked.mT).view(len(x), -1))
    return torch.cat(outputs, dim=1)


def batched_linear(layers: Sequence[nn.Linear], rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Prepare to apply several linear layers, each to its own part of the input.

    Args:
        layers (Sequence[nn.Linear]): δ rows of layers; all rows have the same shapes. Either all layers have
            a bias, or none has.
        rows (int): δ.

    Returns:
        callable: Maps their inputs, concatenated, of shape (δ, ΣC), to their outputs, of shape (δ, ΣC'). It
        keeps the layers' parameters.
    """
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    shapes = [weight.shape for weight in weights]
    outputs, inputs = zip(*shapes, strict=True)
    splits = Split(shapes, inputs, rows), Split(shapes, outputs, rows)

    def compute(x: torch.Tensor) -> torch.Tensor:
        # An autograd function that supports torch.func's transforms inspects its own signature in every call,
        # which takes longer than the computation.
        apply = _products if torch._C._are_functorch_transforms_active() else _BatchedLinear.apply
        result = apply(splits, x, *weights)
        return result + torch.cat(biases).view_as(result) if biases else result

    return compute


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """Return the average of every channel (global average pooling): (N, C, H, W) to (N, C)."""
    # ASR's ψ has one position, and its mean would take time in every training step.
    return x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3))


def hidden_channels(channels: int, ratio: int) -> int:
    """Compute the width of the bottleneck of SE, SPA and CBAM.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction.

    Returns:
        int: C / ratio, rounded, at least 1.

    Raises:
        InputError: If the ratio is not a positive number.
    """
    if not isinstance(ratio, int | float) or ratio <= 0:
        raise InputError(f'ratio must be a positive number, not {ratio!r}')
    return max(1, round(channels / ratio))
