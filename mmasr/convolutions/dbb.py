"""Diverse Branch Block: Building a Convolution as an Inception-like Unit, Ding et al., CVPR 2021,
https://arxiv.org/abs/2103.13425; and the branches of OREPA on feature maps, which OREPA's paper compares itself with. Needs
torch only."""

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import conv2d, pad
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..core.merge import Merging
from .orepa import EXPANSION, OREPA, frequency_prior

KernelAndBias = tuple[torch.Tensor, torch.Tensor]


class _Branches(Merging):
    """Base of a convolution with branches on feature maps that are added up, each with a BatchNorm as its last layer ``norm``.

    A subclass makes the children that :attr:`branches` names, the origin first, and says in :meth:`kernel` what kernel and bias
    each is in eval mode.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2), so that all branches see the same place. Default: 1.
        dilation (int | tuple[int, int]): One for both directions, of all k x k windows, also of the average (ours). Default: 1.
        groups (int): Groups. Default: 1.
        init_identity (bool): Start as the plain convolution: the BatchNorm of the origin changes nothing, those of the others
            give 0. For networks with pretrained weights, in which BatchNorms are in eval mode or another one follows. Default:
            False.

    Raises:
        ValueError: If the kernel is not odd and square, the padding is another, or there are two dilations.
    """

    heir = 'origin.conv'
    mark = 'origin'
    branches: tuple[str, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        init_identity: bool = False,
    ) -> None:
        super().__init__()
        size, name = _pair(kernel_size), type(self).__name__
        if size[0] != size[1] or size[0] % 2 == 0:
            raise ValueError(f'{name} takes the place of a convolution with an odd square kernel, not one of {kernel_size}')
        d = _pair(dilation)[0]
        needed = d * (size[0] // 2)
        if _pair(dilation) != (d, d) or _pair(padding) != (needed, needed):
            raise ValueError(f'{name} needs one dilation, and with it a padding of {needed}, not {dilation} and {padding}')
        self.in_channels, self.out_channels, self.size, self.groups = in_channels, out_channels, size[0], groups
        self.stride, self.dilation, self.padding, self.init_identity = _pair(stride), d, needed, init_identity
        self.make()
        self.init_weights()

    def make(self) -> None:
        """Make the branches."""
        raise NotImplementedError

    def conv(self, inputs: int, outputs: int, size: int, **options) -> nn.Conv2d:
        """A convolution with the groups of the branches, without bias."""
        return nn.Conv2d(inputs, outputs, size, groups=self.groups, bias=False, **options)

    def kernel(self, branch: str) -> KernelAndBias:
        """The kernel and the bias that a branch is before its last BatchNorm.

        Args:
            branch (str): Its name.

        Returns:
            tuple[Tensor, Tensor]: (out_channels, in_channels / groups, k, k) and (out_channels,), or None for no bias.
        """
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[str, ...]:
        """The last layers of the branches, as of Merging."""
        return tuple(f'{branch}.norm' for branch in self.branches)

    def init_weights(self) -> None:
        """Give the branches initial values other than torch's."""
        for module in self.modules():
            if isinstance(module, IdentityConv):
                nn.init.zeros_(module.weight)
        if self.init_identity:
            for branch in self.branches:
                norm = self.get_submodule(branch).norm
                nn.init.constant_(norm.weight, math.sqrt(1 + norm.eps) if branch == self.branches[0] else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        first, *others = (self.get_submodule(branch) for branch in self.branches)
        result = first(x)
        for branch in others:
            result = result + branch(x)
        return result

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The one convolution, with bias, that computes the same in eval mode."""
        weight, bias = 0, 0
        for branch in self.branches:
            w, b = fused(*self.kernel(branch), self.get_submodule(branch).norm)
            weight, bias = weight + w, bias + b
        options = {'stride': self.stride, 'padding': self.padding, 'dilation': self.dilation, 'groups': self.groups}
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.size, **options).to(weight)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv


class DBB(_Branches):
    """The Diverse Branch Block: the convolution; a 1 x 1; a 1 x 1 before a k x k; a 1 x 1 before an average. Every layer has
    its own BatchNorm, and the inner ones are padded with what their BatchNorm makes of zeros (section 3.2 and Fig. 3 of the
    paper).

    A depthwise one has no 1 x 1 of its own, nor one before its average, and twice as many channels between the last two, as in
    the authors' code.

    Args:
        *args, **kwargs: As of nn.Conv2d, with k at least 3, and ``init_identity``; see :class:`_Branches`.
    """

    def make(self) -> None:
        """Make the branches."""
        if self.size == 1:
            raise ValueError('DBB takes the place of a convolution with a kernel of 3 x 3 or more, not of 1 x 1')
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        window = {'stride': self.stride, 'dilation': self.dilation}
        self.origin = chain(outputs, conv=self.conv(inputs, outputs, k, padding=self.padding, **window))
        if groups < outputs:
            self.branches = 'origin', 'point', 'deep', 'average'
            self.point = chain(outputs, conv=self.conv(inputs, outputs, 1, stride=self.stride))
            inner = _Inner(self.conv(inputs, outputs, 1), self.padding)
            self.average = chain(outputs, inner=inner, pool=_Average(k, **window))
        else:
            self.branches = 'origin', 'deep', 'average'
            self.average = chain(outputs, pool=_Average(k, **window, padding=self.padding))
        between = inputs if groups < outputs else 2 * inputs
        first = IdentityConv(inputs, groups) if between == inputs else self.conv(inputs, between, 1)
        last = self.conv(between, outputs, k, **window)
        self.deep = chain(outputs, inner=_Inner(first, self.padding), conv=last)

    def kernel(self, branch: str) -> KernelAndBias:
        """See :meth:`_Branches.kernel`."""
        if branch == 'origin':
            return self.origin.conv.weight, None
        if branch == 'point':
            return pad(self.point.conv.weight, [self.size // 2] * 4), None
        inner = getattr(self.get_submodule(branch), 'inner', None)
        if branch == 'deep':
            first, bias = fused(
                inner.conv.kernel() if isinstance(inner.conv, IdentityConv) else inner.conv.weight, None, inner.norm
            )
            last = self.deep.conv.weight
            by_group = last.view(self.groups, -1, *last.shape[1:]), bias.view(self.groups, -1)
            return in_a_row(first, last, self.groups), torch.einsum('gothw,gt->go', *by_group).flatten()
        if inner is None:
            weight, bias = torch.ones_like(self.origin.conv.weight[:, :, :1, :1]), None
        else:
            weight, bias = fused(inner.conv.weight, None, inner.norm)
        return (weight / self.size**2).expand_as(self.origin.conv.weight), bias


class OfflineOREPA(_Branches):
    """The branches of :class:`mmasr.convolutions.orepa.OREPA` on feature maps, each with a BatchNorm in the place of its scale:
    what its paper measures the online form against. Kernels of 1 x 1, 3 x 3 and 5 x 5.

    Args:
        *args, **kwargs: As of nn.Conv2d, and ``init_identity``; see :class:`_Branches`.
    """

    def make(self) -> None:
        """Make the branches."""
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        at_end, window = {'stride': self.stride}, {'stride': self.stride, 'dilation': self.dilation}
        self.origin = chain(outputs, conv=self.conv(inputs, outputs, k, padding=self.padding, **window))
        if k == 1:
            self.branches = 'origin', 'deep'
            between = min(inputs, outputs)
            self.deep = chain(outputs, inner=self.conv(inputs, between, 1), conv=self.conv(between, outputs, 1, **at_end))
            return
        self.branches = 'origin', 'deep', 'average', 'prior', 'point', 'separable'
        between = inputs * (2 if groups > 4 else 1)
        inner = IdentityConv(inputs, groups, between, self.padding)
        self.deep = chain(outputs, inner=inner, conv=self.conv(between, outputs, k, **window))
        padded = {'padding': self.padding}  # a 1 x 1 convolution without bias keeps zeros
        self.average = chain(outputs, inner=self.conv(inputs, outputs, 1, **padded), pool=_Average(k, **window))
        fixed = nn.Conv2d(outputs, outputs, k, groups=outputs, bias=False, **window).requires_grad_(False)
        self.prior = chain(outputs, inner=self.conv(inputs, outputs, 1, **padded), fixed=fixed)
        self.point = chain(outputs, conv=self.conv(inputs, outputs, 1, **at_end))
        wide = nn.Conv2d(inputs, inputs * EXPANSION, k, groups=inputs, bias=False, **padded, **window)
        self.separable = chain(outputs, inner=wide, conv=self.conv(inputs * EXPANSION, outputs, 1))

    @classmethod
    def sites(cls, model: nn.Module) -> list[str]:
        """Names of the layers of a network that it takes the place of by default: those of OREPA, but for larger kernels."""
        return [name for name in OREPA.sites(model) if model.get_submodule(name).kernel_size[0] <= 5]

    def init_weights(self) -> None:
        """Give the branches initial values other than torch's."""
        super().init_weights()
        if self.size > 1:
            with torch.no_grad():
                self.prior.fixed.weight.copy_(frequency_prior(self.out_channels, self.size)[:, None])

    def kernel(self, branch: str) -> KernelAndBias:
        """See :meth:`_Branches.kernel`."""
        layers = self.get_submodule(branch)
        if branch == 'origin':
            return layers.conv.weight, None
        if branch == 'point':
            return pad(layers.conv.weight, [self.size // 2] * 4), None
        if branch == 'average':
            return (layers.inner.weight / self.size**2).expand_as(self.origin.conv.weight), None
        if branch == 'prior':
            return layers.inner.weight * layers.fixed.weight, None
        if branch == 'separable':
            depthwise = layers.inner.weight.view(self.groups, -1, EXPANSION, self.size, self.size)
            pointwise = layers.conv.weight.view(self.groups, self.out_channels // self.groups, -1, EXPANSION)
            return torch.einsum('goit,githw->goihw', pointwise, depthwise).flatten(0, 1), None
        first = layers.inner.kernel() if isinstance(layers.inner, IdentityConv) else layers.inner.weight
        return in_a_row(first, layers.conv.weight, self.groups), None


class IdentityConv(nn.Conv2d):
    """A 1 x 1 convolution whose kernel is the identity and a weight that starts at 0.

    Args:
        channels (int): Number of input channels.
        groups (int): Groups.
        outputs (int, optional): Number of output channels, a multiple of the inputs: the identity once more. Default: the same.
        padding (int): Of zeros. Default: 0.
    """

    def __init__(self, channels: int, groups: int, outputs: int | None = None, padding: int = 0) -> None:
        super().__init__(channels, outputs or channels, 1, padding=padding, groups=groups, bias=False)

    def kernel(self) -> torch.Tensor:
        """The kernel, (out_channels, in_channels / groups, 1, 1)."""
        own = self.weight.shape[1]
        identity = torch.eye(own, dtype=self.weight.dtype, device=self.weight.device)
        return (self.weight.view(-1, own, own) + identity).view_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W)."""
        return self._conv_forward(x, self.kernel(), None)


class _Average(nn.AvgPool2d):
    """An average over a window whose pixels are ``dilation`` apart, which torch's has not."""

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
    """A convolution and its BatchNorm, padded with what the BatchNorm makes of zeros."""

    def __init__(self, conv: nn.Conv2d, padding: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, p = self.norm, self.padding
        y = pad(norm(self.conv(x)), [p] * 4)
        border = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(1, -1, 1, 1)
        for side in (y[:, :, :p], y[:, :, -p:], y[..., :p], y[..., -p:]):
            side.copy_(border.expand_as(side))
        return y


def chain(channels: int, **layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, by name, with a BatchNorm ``norm`` as the last."""
    return nn.Sequential(OrderedDict(**layers, norm=nn.BatchNorm2d(channels)))


def fused(weight: torch.Tensor, bias: torch.Tensor | None, norm: nn.Module) -> KernelAndBias:
    """A convolution and the BatchNorm after it as one, in eval mode (transform I of the paper)."""
    return fuse_conv_bn_weights(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def in_a_row(first: torch.Tensor, last: torch.Tensor, groups: int) -> torch.Tensor:
    """The kernel of a 1 x 1 convolution before a k x k one (transform III of the paper).

    Args:
        first (Tensor): (T, I / g, 1, 1).
        last (Tensor): (O, T / g, k, k).
        groups (int): g, of both.

    Returns:
        Tensor: (O, I / g, k, k).
    """
    first, last = first.view(groups, -1, first.shape[1]), last.view(groups, -1, *last.shape[1:])
    return torch.einsum('gothw,gti->goihw', last, first).flatten(0, 1)
