"""Convolutions whose kernel depends on what they convolve. Needs torch only.

At every position p of the output, y_p = Σ_u w_u(x, p) x_{p+u} over the offsets u of a window of k x k. The kinds differ in the
kernel w; all are O(n) in the number of positions n.
"""

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, pad
from torch.nn.modules.utils import _pair

from .dbb import fused

Size = int | tuple[int, int]


class Dynamic(nn.Module):
    """Base of a convolution whose kernel depends on its input: no normalization after it, no bias.

    A subclass has a child ``value``, a linear map over channels, into whose rows a scale of the output folds.

    Args:
        in_channels (int): Number I of input channels.
        out_channels (int): Number O of output channels.
        kernel_size (int | tuple[int, int]): k, odd. An output looks at the window around its own position.
        stride (int | tuple[int, int]): Stride. Default: 1.
        dilation (int | tuple[int, int]): Distance of neighbours in the window. Default: 1.
        groups (int): Groups g of all linear maps over channels. Default: 1.
    """

    value: nn.Conv2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, dilation: Size = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = tuple(d * (k // 2) for d, k in zip(self.dilation, self.size, strict=True))

    def point(self, stride: Size = 1) -> nn.Conv2d:
        """A linear map over channels, I to O."""
        return nn.Conv2d(self.in_channels, self.out_channels, 1, stride, groups=self.groups, bias=False)

    def window(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The neighbours of every position of the output: x_{p+u} for each offset u, zero beyond the border.

        Args:
            x (Tensor): (N, C, H, W).

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

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """The kernel at every position, written out, to be looked at; forward gets by without.

        Args:
            x (Tensor): (N, I, H, W).

        Returns:
            Tensor: (N, O, I, k², H', W').
        """
        raise NotImplementedError

    @torch.no_grad()
    def fold(self, norm: nn.Module) -> torch.Tensor:
        """Fold the BatchNorm after it into it, and what BatchNorms there are within, as of eval mode, in place.

        Args:
            norm (nn.Module): A BatchNorm.

        Returns:
            Tensor: (O,), what is left to be added to the output.
        """
        weight, bias = fused(self.value.weight, None, norm)
        self.value.weight.copy_(weight)
        return bias


class PSSA(Dynamic):
    """Pixel shift self-attention: products of the map with itself, shifted, and their weighted sum.

    w_u(x, p) = W^v diag(a_u ⊙ x_p), so y = W^v (x ⊙ depthwise(x)) with the depthwise convolution's kernel a.

    Args:
        *args, **kwargs: As of :class:`Dynamic`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        window = self.size, self.stride, self.padding, self.dilation
        self.shift = nn.Conv2d(self.in_channels, self.in_channels, *window, groups=self.in_channels, bias=False)
        self.value = self.point()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        i, j = self.stride
        return self.value(x[:, :, ::i, ::j] * self.shift(x))

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Dynamic.kernel`."""
        i, j = self.stride
        value, shift = dense(self.value), self.shift.weight.flatten(1)
        return torch.einsum('oc,cu,nchw->nocuhw', value[..., 0], shift, x[:, :, ::i, ::j])


class _Values(Dynamic):
    """Base of one that weighs the values of its neighbours: w_u(x, p) = diag(A_u(x, p)) W^v, where A has one weight for each of
    several heads, which share the output channels."""

    heads: int

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weights of the neighbours.

        Args:
            x (Tensor): (N, I, H, W).

        Returns:
            Tensor: (N, heads, k², H', W').
        """
        raise NotImplementedError

    def values(self) -> torch.Tensor:
        """The linear map that gives the values, (O, I)."""
        return dense(self.value)[..., 0]

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """A map (N, O, H', W') as (N, heads, O / heads, H', W')."""
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
        """See :meth:`Dynamic.kernel`."""
        weights = self.weights(x).repeat_interleave(self.out_channels // self.heads, 1)
        return torch.einsum('nouhw,oc->nocuhw', weights, self.values())


class SelfAttention(_Values):
    """Self-attention over the window: A_u = softmax_u(q_p · k_{p+u} / √d), with queries q, keys k and values linear in x, eight
    heads of d channels each, and no weight beyond the border.

    Args:
        *args, **kwargs: As of :class:`Dynamic`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.heads = math.gcd(self.out_channels, 8)
        self.query, self.key, self.value = self.point(self.stride), self.point(), self.point()

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`_Values.weights`."""
        query = self.by_head(self.query(x)) * (self.out_channels // self.heads) ** -0.5
        logits = torch.stack([(query * self.by_head(key)).sum(2) for key in self.window(self.key(x))], 2)
        inside = torch.stack(self.window(torch.ones_like(x[:1, :1])), 2) > 0
        return logits.masked_fill(~inside, -torch.inf).softmax(2)


class Involution(_Values):
    """Involution: A_u is computed from x_p alone, by two linear maps with BatchNorm and ReLU between; the input's own channels
    are the values. Involution: Inverting the Inherence of Convolution for Visual Recognition, Li et al., CVPR 2021,
    https://arxiv.org/abs/2103.06255.

    As in the authors' ResNets 16 channels share a kernel, a quarter of the channels is between the maps, and with a stride the
    kernel comes from the average over it. Where the number of channels changes, as theirs never does, a linear map gives the
    values.

    Args:
        *args, **kwargs: As of :class:`Dynamic`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.heads = self.out_channels // math.gcd(self.out_channels, 16)
        between = max(1, self.in_channels // 4)
        conv = nn.Conv2d(self.in_channels, between, 1, bias=False)
        self.reduce = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(between), relu=nn.ReLU()))
        self.span = nn.Conv2d(between, self.heads * math.prod(self.size), 1)
        self.value = nn.Identity() if self.in_channels == self.out_channels else self.point()
        self.scale = None  # of the output, once a BatchNorm was folded where no map can take it

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`_Values.weights`."""
        if self.stride != (1, 1):
            # Nothing is padded, but ONNX Runtime 1.23 counts what is beyond the border unless told not to.
            x = avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return self.span(self.reduce(x)).unflatten(1, (self.heads, -1))

    def values(self) -> torch.Tensor:
        """See :meth:`_Values.values`."""
        if isinstance(self.value, nn.Conv2d):
            return super().values()
        return torch.diag(self.span.bias.new_ones(self.out_channels) if self.scale is None else self.scale.flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, I, H, W) to (N, O, H', W')."""
        y = super().forward(x)
        return y if self.scale is None else y * self.scale

    @torch.no_grad()
    def fold(self, norm: nn.Module) -> torch.Tensor:
        """See :meth:`Dynamic.fold`."""
        conv = self.reduce.conv
        conv.weight, conv.bias = map(nn.Parameter, fused(conv.weight, None, self.reduce.norm))
        del self.reduce.norm
        if isinstance(self.value, nn.Conv2d):
            return super().fold(norm)
        scale, bias = fused(norm.weight.new_ones(self.out_channels, 1, 1), None, norm)
        self.scale = nn.Parameter(scale)
        return bias


class DynamicConv(nn.Module):
    """A convolution whose kernel has a static part and one that depends on the input.

    y_p = Σ_u (w^A_u(x, p) + w^c_u) x_{p+u} + b. The two sums are taken one by one: the static kernel is the same everywhere,
    which is a convolution, and the other one is a product of small factors, which at every position would be O x I x k²
    numbers.

    Args:
        dynamic (Dynamic): w^A.
        weight (Tensor, optional): w^c, (O, I / groups, k, k). Default: None, no static part.
        bias (Tensor): b, (O,).
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
        """The whole kernel at every position, see :meth:`Dynamic.kernel`."""
        kernel = self.dynamic.kernel(x)
        return kernel if self.weight is None else kernel + dense(self)[..., None, None]


def dense(conv: nn.Conv2d | DynamicConv) -> torch.Tensor:
    """The kernel of a convolution with zeros between its groups, (O, I, k²)."""
    outputs, own, *_ = conv.weight.shape
    groups = conv.dynamic.groups if isinstance(conv, DynamicConv) else conv.groups
    blocks = conv.weight.reshape(groups, outputs // groups, own, -1)
    return torch.einsum('ab,aoiu->aobiu', torch.eye(groups).to(blocks), blocks).reshape(outputs, groups * own, -1)
