"""Convolutions whose kernel depends on their input. Needs torch only.

At every position p of the output, y_p = Σ_u w_u(x, p) x_{p+u} over the offsets u of a k x k window. The
classes differ in the kernel w. All are O(n) in the number of positions n.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, pad
from torch.nn.modules.utils import _pair

from .branches import fuse_norm

Size = int | tuple[int, int]


class Dynamic(nn.Module, ABC):
    """Base class of convolutions whose kernel depends on the input, without bias and normalization.

    A subclass has a child ``value``, a 1 x 1 convolution. A scale of the output channels folds into its rows.

    Args:
        in_channels (int): Number I of input channels.
        out_channels (int): Number O of output channels.
        kernel_size (int | tuple[int, int]): k, odd. The window is centered at the position of the output.
        stride (int | tuple[int, int]): Stride. Default: 1.
        dilation (int | tuple[int, int]): Distance between neighbors in the window. Default: 1.
        groups (int): Groups g of all 1 x 1 convolutions. Default: 1.
    """

    value: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        dilation: Size = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = tuple(d * (k // 2) for d, k in zip(self.dilation, self.size, strict=True))

    def conv_1x1(self, stride: Size = 1) -> nn.Conv2d:
        """Make a 1 x 1 convolution of I input and O output channels."""
        return nn.Conv2d(self.in_channels, self.out_channels, 1, stride, groups=self.groups, bias=False)

    def window(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the neighbors x_{p+u} of all output positions p, one view per offset u; 0 beyond the border.

        Args:
            x (Tensor): Features, (N, C, H, W).

        Returns:
            list[Tensor]: k² views of shape (N, C, H', W').
        """
        (rows, columns), (down, right), (i, j) = self.size, self.dilation, self.stride
        height, width = (s * ((n - 1) // s) + 1 for n, s in zip(x.shape[2:], self.stride, strict=True))
        x = pad(x, [self.padding[1]] * 2 + [self.padding[0]] * 2)
        return [
            x[:, :, a * down : a * down + height : i, b * right : b * right + width : j]
            for a in range(rows)
            for b in range(columns)
        ]

    @abstractmethod
    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense kernel at every position, for inspection; ``forward`` does not compute it.

        Args:
            x (Tensor): Features, (N, I, H, W).

        Returns:
            Tensor: Kernel of shape (N, O, I, k², H', W').
        """

    @torch.no_grad()
    def fold(self, norm: nn.Module) -> torch.Tensor:
        """Fold the BatchNorm after this layer, and all BatchNorms inside, in place, as in eval mode.

        Args:
            norm (nn.Module): The BatchNorm after this layer.

        Returns:
            Tensor: The bias that remains to be added to the output, (O,).
        """
        weight, bias = fuse_norm(self.value.weight, None, norm)
        self.value.weight.copy_(weight)
        return bias


class PSSA(Dynamic):
    """Pixel shift self-attention: a weighted sum of products of the map with its shifted copies.

    w_u(x, p) = W^v diag(a_u ⊙ x_p), so y = W^v (x ⊙ depthwise(x)), where a is the kernel of the depthwise
    convolution.

    Args:
        *args: Arguments of :class:`Dynamic`.
        **kwargs: The same by name.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        window = self.size, self.stride, self.padding, self.dilation
        self.shift = nn.Conv2d(
            self.in_channels, self.in_channels, *window, groups=self.in_channels, bias=False
        )
        self.value = self.conv_1x1()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        i, j = self.stride
        return self.value(x[:, :, ::i, ::j] * self.shift(x))

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense kernel at every position; see :meth:`Dynamic.kernel`."""
        i, j = self.stride
        value, shift = dense(self.value), self.shift.weight.flatten(1)
        return torch.einsum('oc,cu,nchw->nocuhw', value[..., 0], shift, x[:, :, ::i, ::j])


class _WeightedNeighbors(Dynamic):
    """Base class of weighted sums of the neighbors' values: w_u(x, p) = diag(A_u(x, p)) W^v.

    A has one weight per head. Each head weights an equal part of the output channels.
    """

    heads: int

    @abstractmethod
    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights A of the neighbors.

        Args:
            x (Tensor): Features, (N, I, H, W).

        Returns:
            Tensor: Weights of shape (N, heads, k², H', W').
        """

    def value_matrix(self) -> torch.Tensor:
        """Return the matrix W^v of shape (O, I)."""
        return dense(self.value)[..., 0]

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """Split the channels of a map (N, O, H', W') by head: (N, heads, O / heads, H', W')."""
        return x.unflatten(1, (self.heads, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        values = self.window(self.value(x))
        weights = self.weights(x).unsqueeze(2).unbind(3)
        y = weights[0] * self.by_head(values[0])
        for weight, value in zip(weights[1:], values[1:], strict=True):
            y = torch.addcmul(y, weight, self.by_head(value))
        return y.flatten(1, 2)

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense kernel at every position; see :meth:`Dynamic.kernel`."""
        weights = self.weights(x).repeat_interleave(self.out_channels // self.heads, 1)
        return torch.einsum('nouhw,oc->nocuhw', weights, self.value_matrix())


class SelfAttention(_WeightedNeighbors):
    """Self-attention over the window: A_u = softmax_u(q_p · k_{p+u} / √d).

    Queries q, keys k and values are linear in x. There are eight heads of d channels each, or gcd(O, 8) heads
    if 8 does not divide O. Positions beyond the border have no weight.

    Args:
        *args: Arguments of :class:`Dynamic`.
        **kwargs: The same by name.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.heads = math.gcd(self.out_channels, 8)
        self.query, self.key, self.value = self.conv_1x1(self.stride), self.conv_1x1(), self.conv_1x1()

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention weights of the neighbors, (N, heads, k², H', W')."""
        query = self.by_head(self.query(x)) * (self.out_channels // self.heads) ** -0.5
        logits = torch.stack([(query * self.by_head(key)).sum(2) for key in self.window(self.key(x))], 2)
        inside = torch.stack(self.window(torch.ones_like(x[:1, :1])), 2) > 0
        return logits.masked_fill(~inside, -torch.inf).softmax(2)


class Involution(_WeightedNeighbors):
    """Involution: A_u is computed from x_p alone.

    Involution: Inverting the Inherence of Convolution for Visual Recognition, Li et al., CVPR 2021,
    https://arxiv.org/abs/2103.06255.

    Two 1 x 1 convolutions with a BatchNorm and a ReLU in between compute A. The values are the channels of
    the input itself. If the number of channels changes, which it never does in the authors' networks, a 1 x 1
    convolution computes the values.

    The rest is as in the authors' ResNets. 16 channels share a kernel. Between the two convolutions there are
    a quarter of the input channels. With a stride, the kernel is computed from the average over the stride.

    Args:
        *args: Arguments of :class:`Dynamic`.
        **kwargs: The same by name.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.heads = self.out_channels // math.gcd(self.out_channels, 16)
        between = max(1, self.in_channels // 4)
        conv = nn.Conv2d(self.in_channels, between, 1, bias=False)
        self.reduce = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(between), relu=nn.ReLU()))
        self.span = nn.Conv2d(between, self.heads * math.prod(self.size), 1)
        self.value = nn.Identity() if self.in_channels == self.out_channels else self.conv_1x1()
        self.scale = None  # of the output, after folding a BatchNorm that no 1 x 1 convolution can absorb

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights of the neighbors, (N, heads, k², H', W')."""
        if self.stride != (1, 1):
            # Nothing is padded. But without count_include_pad=False, ONNX Runtime 1.23 also counts positions
            # beyond the border.
            x = avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return self.span(self.reduce(x)).unflatten(1, (self.heads, -1))

    def value_matrix(self) -> torch.Tensor:
        """Return the matrix W^v of shape (O, I), including the scale of the output."""
        if isinstance(self.value, nn.Conv2d):
            return super().value_matrix()
        return torch.diag(
            self.span.bias.new_ones(self.out_channels) if self.scale is None else self.scale.flatten()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        y = super().forward(x)
        return y if self.scale is None else y * self.scale

    @torch.no_grad()
    def fold(self, norm: nn.Module) -> torch.Tensor:
        """Fold the BatchNorm after this layer and the one inside; see :meth:`Dynamic.fold`."""
        conv = self.reduce.conv
        conv.weight, conv.bias = map(nn.Parameter, fuse_norm(conv.weight, None, self.reduce.norm))
        del self.reduce.norm
        if isinstance(self.value, nn.Conv2d):
            return super().fold(norm)
        scale, bias = fuse_norm(norm.weight.new_ones(self.out_channels, 1, 1), None, norm)
        self.scale = nn.Parameter(scale)
        return bias


class DynamicConv(nn.Module):
    """Convolution whose kernel has a static part and a part that depends on the input.

    y_p = Σ_u (w^A_u(x, p) + w^c_u) x_{p+u} + b. The two sums are computed separately. The static kernel is
    the same at every position, so its sum is a convolution. The dynamic kernel is a product of small factors;
    written out, it would have O x I x k² elements at every position.

    Args:
        dynamic (Dynamic): The dynamic part, w^A.
        weight (Tensor, optional): The static kernel w^c, (O, I / groups, k, k); None for no static part.
        bias (Tensor): The bias b, (O,).
    """

    def __init__(self, dynamic: Dynamic, weight: torch.Tensor | None, bias: torch.Tensor) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        d = self.dynamic
        y = d(x)
        if self.weight is None:
            return y + self.bias.view(-1, 1, 1)
        return y.add_(conv2d(x, self.weight, self.bias, d.stride, d.padding, d.dilation, d.groups))

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense kernel at every position, with its static part; see :meth:`Dynamic.kernel`."""
        kernel = self.dynamic.kernel(x)
        return kernel if self.weight is None else kernel + dense(self)[..., None, None]


def dense(conv: nn.Conv2d | DynamicConv) -> torch.Tensor:
    """Return the kernel of a convolution with zeros between its groups, (O, I, k²)."""
    outputs, own, *_ = conv.weight.shape
    groups = conv.dynamic.groups if isinstance(conv, DynamicConv) else conv.groups
    blocks = conv.weight.reshape(groups, outputs // groups, own, -1)
    diagonal = torch.einsum('ab,aoiu->aobiu', torch.eye(groups).to(blocks), blocks)
    return diagonal.reshape(outputs, groups * own, -1)
