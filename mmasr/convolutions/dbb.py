"""DBB, and the branches of OREPA on feature maps, with which OREPA's paper compares its online form.

Diverse Branch Block: Building a Convolution as an Inception-like Unit, Ding et al., CVPR 2021,
https://arxiv.org/abs/2103.13425. Needs torch only.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from .branches import Branches, IdentityConv, KernelAndBias, chain, fuse_norm
from .orepa import EXPANSION, OREPA, frequency_prior


class DBB(Branches):
    """Diverse Branch Block (section 3.2 and Fig. 3 of the paper).

    The branches are a k x k convolution; a 1 x 1 convolution; a 1 x 1 before a k x k convolution; and a 1 x 1
    convolution before an average. Every layer has its own BatchNorm. The inner layers are padded with their
    BatchNorm's output for zero.

    A depthwise block follows the authors' code: it has no 1 x 1 branch, no 1 x 1 convolution before the
    average, and twice as many channels between the 1 x 1 and the k x k convolution. With a dilation, the
    average is dilated too (our extension).

    Args:
        *args: Arguments of :class:`mmasr.convolutions.branches.Branches`, with k of at least 3.
        **kwargs: The same by name.

    Raises:
        InputError: See :class:`mmasr.convolutions.branches.Branches`; and if k is 1.
    """

    smallest_kernel = 3
    state_dict_children = r'average deep origin( point)?'

    def make(self) -> None:
        """Make the branches."""
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        is_depthwise = inputs == outputs == groups
        window = {'stride': self.stride, 'dilation': self.dilation}
        self.origin = self.make_origin()
        if is_depthwise:
            self.branches = 'origin', 'deep', 'average'
            self.average = chain(outputs, pool=_Average(k, **window, padding=self.padding))
        else:
            self.branches = 'origin', 'point', 'deep', 'average'
            self.point = chain(outputs, conv=self.make_point())
            inner = _Inner(self.conv(inputs, outputs, 1), self.padding)
            self.average = chain(outputs, inner=inner, pool=_Average(k, **window))
        between = 2 * inputs if is_depthwise else inputs
        first = IdentityConv(inputs, groups) if between == inputs else self.conv(inputs, between, 1)
        last = self.conv(between, outputs, k, **window)
        self.deep = chain(outputs, inner=_Inner(first, self.padding), conv=last)

    def kernel(self, branch: str) -> KernelAndBias:
        """Return the kernel and bias of a branch; see :meth:`Branches.kernel`."""
        if branch in ('origin', 'point'):
            return super().kernel(branch)
        inner = getattr(self.get_submodule(branch), 'inner', None)
        if branch == 'deep':
            first, bias = fuse_norm(_kernel_1x1(inner.conv), None, inner.norm)
            last = self.deep.conv.weight
            by_group = last.view(self.groups, -1, *last.shape[1:]), bias.view(self.groups, -1)
            return compose(first, last, self.groups), torch.einsum('gothw,gt->go', *by_group).flatten()
        if inner is None:
            weight, bias = torch.ones_like(self.origin.conv.weight[:, :, :1, :1]), None
        else:
            weight, bias = fuse_norm(inner.conv.weight, None, inner.norm)
        return (weight / self.size**2).expand_as(self.origin.conv.weight), bias


class OfflineOREPA(Branches):
    """Branches of OREPA on feature maps, each with a BatchNorm instead of its scale.

    OREPA's paper compares its online form (:class:`mmasr.convolutions.orepa.OREPA`) with this one. It
    supports kernels of 1 x 1, 3 x 3 and 5 x 5.

    Args:
        *args: Arguments of :class:`mmasr.convolutions.branches.Branches`.
        **kwargs: The same by name.
    """

    state_dict_children = 'deep origin|average deep origin point prior separable'

    def make(self) -> None:
        """Make the branches."""
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        at_end, window = {'stride': self.stride}, {'stride': self.stride, 'dilation': self.dilation}
        self.origin = self.make_origin()
        if k == 1:
            self.branches = 'origin', 'deep'
            between = min(inputs, outputs)
            self.deep = chain(
                outputs, inner=self.conv(inputs, between, 1), conv=self.conv(between, outputs, 1, **at_end)
            )
            return
        self.branches = 'origin', 'deep', 'average', 'prior', 'point', 'separable'
        between = inputs * (2 if groups > 4 else 1)
        inner = IdentityConv(inputs, groups, between, self.padding)
        self.deep = chain(outputs, inner=inner, conv=self.conv(between, outputs, k, **window))
        padded = {'padding': self.padding}  # a 1 x 1 convolution without bias maps zeros to zeros
        self.average = chain(
            outputs, inner=self.conv(inputs, outputs, 1, **padded), pool=_Average(k, **window)
        )
        fixed = nn.Conv2d(outputs, outputs, k, groups=outputs, bias=False, **window).requires_grad_(False)
        self.prior = chain(outputs, inner=self.conv(inputs, outputs, 1, **padded), fixed=fixed)
        self.point = chain(outputs, conv=self.make_point())
        wide = nn.Conv2d(inputs, inputs * EXPANSION, k, groups=inputs, bias=False, **padded, **window)
        self.separable = chain(outputs, inner=wide, conv=self.conv(inputs * EXPANSION, outputs, 1))

    @classmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the default sites of OREPA that it supports, without kernels larger than 5 x 5."""
        layers = {name: model.get_submodule(name) for name in OREPA.default_sites(model)}
        return [n for n, layer in layers.items() if layer.kernel_size[0] <= 5 and cls.supports(n, layer)]

    def init_weights(self) -> None:
        """Set the initial values that differ from torch's, and the fixed frequency prior."""
        super().init_weights()
        if self.size > 1:
            with torch.no_grad():
                self.prior.fixed.weight.copy_(frequency_prior(self.out_channels, self.size)[:, None])

    def kernel(self, branch: str) -> KernelAndBias:
        """Return the kernel of a branch, which has no bias; see :meth:`Branches.kernel`."""
        layers = self.get_submodule(branch)
        if branch in ('origin', 'point'):
            return super().kernel(branch)
        if branch == 'average':
            return (layers.inner.weight / self.size**2).expand_as(self.origin.conv.weight), None
        if branch == 'prior':
            return layers.inner.weight * layers.fixed.weight, None
        if branch == 'separable':
            depthwise = layers.inner.weight.view(self.groups, -1, EXPANSION, self.size, self.size)
            pointwise = layers.conv.weight.view(self.groups, self.out_channels // self.groups, -1, EXPANSION)
            return torch.einsum('goit,githw->goihw', pointwise, depthwise).flatten(0, 1), None
        return compose(_kernel_1x1(layers.inner), layers.conv.weight, self.groups), None


def _kernel_1x1(conv: nn.Conv2d) -> torch.Tensor:
    return conv.kernel() if isinstance(conv, IdentityConv) else conv.weight


class _Average(nn.AvgPool2d):
    """Average over a window whose pixels are ``dilation`` apart; torch's average pooling has no dilation."""

    def __init__(self, size: int, stride: tuple[int, int], dilation: int, padding: int = 0) -> None:
        super().__init__(size, stride, padding)
        self.dilation = dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dilation == 1:
            return super().forward(x)
        channels, k = x.shape[1], self.kernel_size
        kernel = x.new_full((1, 1, 1, 1), 1 / k**2).expand(channels, 1, k, k)
        return conv2d(x, kernel, None, self.stride, self.padding, self.dilation, channels)


class _Inner(nn.Module):
    """Convolution and BatchNorm, padded with the BatchNorm's output for zero."""

    def __init__(self, conv: nn.Conv2d, padding: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, p = self.norm, self.padding
        # Activation checkpointing runs it again in the backward pass. The border must be the same then, so
        # the running statistics stay.
        again = norm.training and torch._C._current_graph_task_id() != -1
        with _frozen_statistics(norm) if again else contextlib.nullcontext():
            y = pad(norm(self.conv(x)), [p] * 4)
        border = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
        border = border.detach().view(1, -1, 1, 1)
        for side in (y[:, :, :p], y[:, :, -p:], y[..., :p], y[..., -p:]):
            side.copy_(border.expand_as(side))
        return y


@contextlib.contextmanager
def _frozen_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """While active, keep the running statistics of a BatchNorm in training mode as they are."""
    momentum, norm.momentum = norm.momentum, 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked -= 1


def compose(first: torch.Tensor, last: torch.Tensor, groups: int) -> torch.Tensor:
    """Compose a 1 x 1 convolution and the k x k convolution after it (transform III of the paper).

    Args:
        first (Tensor): Kernel of the 1 x 1 convolution, (T, I / g, 1, 1).
        last (Tensor): Kernel of the k x k convolution, (O, T / g, k, k).
        groups (int): Groups g of both.

    Returns:
        Tensor: Kernel of shape (O, I / g, k, k).
    """
    first, last = first.view(groups, -1, first.shape[1]), last.view(groups, -1, *last.shape[1:])
    return torch.einsum('gothw,gti->goihw', last, first).flatten(0, 1)
