"""DBB, and the branches of OREPA on feature maps, with which OREPA's paper compares its online form.

Diverse Branch Block: Building a Convolution as an Inception-like Unit, Ding et al., CVPR 2021,
https://arxiv.org/abs/2103.13425. Needs torch only.
"""

import contextlib
import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import conv2d, pad
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..core.reparameterization import BranchReparameterization
from ..errors import InputError
from .orepa import EXPANSION, OREPA, frequency_prior

KernelAndBias = tuple[torch.Tensor, torch.Tensor | None]


class _Branches(BranchReparameterization):
    """Base class of convolutions with branches on feature maps, which are summed.

    Every branch ends with a BatchNorm ``norm``. A subclass makes the branches in :meth:`make` and sets
    :attr:`branches`. It returns their kernels and biases in :meth:`kernel`.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2), so that all branches are centered at the same
            positions. Default: 1.
        dilation (int | tuple[int, int]): Dilation of all k x k windows, including the average (our
            extension), the same in both directions. Default: 1.
        groups (int): Groups. Default: 1.
        init_identity (bool): Start as the plain convolution: the BatchNorm of the origin changes nothing, and
            the other BatchNorms output 0. For pretrained networks in which BatchNorms are in eval mode, or in
            which another BatchNorm follows. Default: False.

    Raises:
        InputError: If the kernel is not odd and square, the padding is not dilation · (k // 2), or the two
            dilations differ.
    """

    main_weight = 'origin.conv'
    state_dict_marker = 'origin'
    #: Names of the branches, the origin first.
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
            raise InputError(
                f'{name} replaces a convolution with an odd square kernel, not with a kernel of {kernel_size}'
            )
        d = _pair(dilation)[0]
        needed = d * (size[0] // 2)
        if _pair(dilation) != (d, d) or _pair(padding) != (needed, needed):
            raise InputError(
                f'{name} needs one dilation for both directions and a padding of {needed}, not a dilation of '
                f'{dilation} and a padding of {padding}'
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.size, self.stride, self.dilation, self.padding = size[0], _pair(stride), d, needed
        self.init_identity = init_identity
        self.make()
        self.init_weights()

    @abstractmethod
    def make(self) -> None:
        """Make the branches, and set :attr:`branches` to their names."""

    @abstractmethod
    def kernel(self, branch: str) -> KernelAndBias:
        """Return the kernel and bias that a branch amounts to in eval mode, before its last BatchNorm.

        Args:
            branch (str): Name of the branch.

        Returns:
            tuple[Tensor, Tensor | None]: Kernel of shape (out_channels, in_channels / groups, k, k), and bias
            of shape (out_channels,) or None.
        """

    def conv(self, inputs: int, outputs: int, size: int, **options) -> nn.Conv2d:
        """Make a convolution without bias that has the groups of this one.

        Args:
            inputs (int): Number of input channels.
            outputs (int): Number of output channels.
            size (int): Size of the square kernel.
            **options: More arguments of nn.Conv2d.

        Returns:
            nn.Conv2d: The convolution.
        """
        return nn.Conv2d(inputs, outputs, size, groups=self.groups, bias=False, **options)

    @property
    def branch_ends(self) -> tuple[str, ...]:
        """Names of the branches' last layers; see :attr:`BranchReparameterization.branch_ends`."""
        return tuple(f'{branch}.norm' for branch in self.branches)

    def init_weights(self) -> None:
        """Set the initial values that differ from torch's."""
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
    def to_single_layer(self) -> nn.Conv2d:
        """Return the convolution, with bias, that computes the same in eval mode."""
        weight, bias = 0, 0
        for branch in self.branches:
            w, b = fuse_norm(*self.kernel(branch), self.get_submodule(branch).norm)
            weight, bias = weight + w, bias + b
        options = {name: getattr(self, name) for name in ('stride', 'padding', 'dilation', 'groups')}
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.size, **options).to(weight)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv


class DBB(_Branches):
    """Diverse Branch Block (section 3.2 and Fig. 3 of the paper).

    The branches are a k x k convolution; a 1 x 1 convolution; a 1 x 1 before a k x k convolution; and a 1 x 1
    convolution before an average. Every layer has its own BatchNorm. The inner layers are padded with their
    BatchNorm's output for zero.

    A depthwise block follows the authors' code: it has no 1 x 1 branch, no 1 x 1 convolution before the
    average, and twice as many channels between the 1 x 1 and the k x k convolution.

    Args:
        *args: Arguments of :class:`_Branches`, with k of at least 3.
        **kwargs: The same by name.

    Raises:
        InputError: See :class:`_Branches`; and if k is 1.
    """

    def make(self) -> None:
        """Make the branches.

        Raises:
            InputError: If k is 1.
        """
        if self.size == 1:
            raise InputError('DBB replaces a convolution with a kernel of 3 x 3 or more, not 1 x 1')
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        is_depthwise = inputs == outputs == groups
        window = {'stride': self.stride, 'dilation': self.dilation}
        self.origin = chain(outputs, conv=self.conv(inputs, outputs, k, padding=self.padding, **window))
        if is_depthwise:
            self.branches = 'origin', 'deep', 'average'
            self.average = chain(outputs, pool=_Average(k, **window, padding=self.padding))
        else:
            self.branches = 'origin', 'point', 'deep', 'average'
            self.point = chain(outputs, conv=self.conv(inputs, outputs, 1, stride=self.stride))
            inner = _Inner(self.conv(inputs, outputs, 1), self.padding)
            self.average = chain(outputs, inner=inner, pool=_Average(k, **window))
        between = 2 * inputs if is_depthwise else inputs
        first = IdentityConv(inputs, groups) if between == inputs else self.conv(inputs, between, 1)
        last = self.conv(between, outputs, k, **window)
        self.deep = chain(outputs, inner=_Inner(first, self.padding), conv=last)

    def kernel(self, branch: str) -> KernelAndBias:
        """Return the kernel and bias of a branch; see :meth:`_Branches.kernel`."""
        if branch == 'origin':
            return self.origin.conv.weight, None
        if branch == 'point':
            return pad(self.point.conv.weight, [self.size // 2] * 4), None
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


class OfflineOREPA(_Branches):
    """Branches of OREPA on feature maps, each with a BatchNorm instead of its scale.

    OREPA's paper compares its online form (:class:`mmasr.convolutions.orepa.OREPA`) with this one. It
    supports kernels of 1 x 1, 3 x 3 and 5 x 5.

    Args:
        *args: Arguments of :class:`_Branches`.
        **kwargs: The same by name.
    """

    def make(self) -> None:
        """Make the branches."""
        inputs, outputs, k, groups = self.in_channels, self.out_channels, self.size, self.groups
        at_end, window = {'stride': self.stride}, {'stride': self.stride, 'dilation': self.dilation}
        self.origin = chain(outputs, conv=self.conv(inputs, outputs, k, padding=self.padding, **window))
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
        self.point = chain(outputs, conv=self.conv(inputs, outputs, 1, **at_end))
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
        """Return the kernel of a branch, which has no bias; see :meth:`_Branches.kernel`."""
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
        return compose(_kernel_1x1(layers.inner), layers.conv.weight, self.groups), None


class IdentityConv(nn.Conv2d):
    """1 x 1 convolution whose kernel is the identity plus a weight that starts at 0.

    Args:
        channels (int): Number of input channels.
        groups (int): Groups.
        outputs (int, optional): Number of output channels, a multiple of ``channels``; the identity is then
            repeated. Default: ``channels``.
        padding (int): Zero padding. Default: 0.
    """

    def __init__(self, channels: int, groups: int, outputs: int | None = None, padding: int = 0) -> None:
        super().__init__(channels, outputs or channels, 1, padding=padding, groups=groups, bias=False)

    def kernel(self) -> torch.Tensor:
        """Return the kernel, of shape (out_channels, in_channels / groups, 1, 1)."""
        own = self.weight.shape[1]
        identity = torch.eye(own, dtype=self.weight.dtype, device=self.weight.device)
        return (self.weight.view(-1, own, own) + identity).view_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self._conv_forward(x, self.kernel(), None)


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


def chain(channels: int, **layers: nn.Module) -> nn.Sequential:
    """Make a sequence of named layers that ends with a BatchNorm ``norm``.

    Args:
        channels (int): Number of channels of the BatchNorm.
        **layers (nn.Module): The other layers, in order.

    Returns:
        nn.Sequential: The sequence.
    """
    return nn.Sequential(OrderedDict(**layers, norm=nn.BatchNorm2d(channels)))


def fuse_norm(weight: torch.Tensor, bias: torch.Tensor | None, norm: nn.Module) -> KernelAndBias:
    """Fuse a convolution with the BatchNorm after it, in eval mode (transform I of the paper).

    Args:
        weight (Tensor): Kernel of the convolution, (O, I / g, k, k).
        bias (Tensor, optional): Bias of the convolution, (O,).
        norm (nn.Module): The BatchNorm.

    Returns:
        tuple[Tensor, Tensor]: Kernel of the same shape, and bias (O,).
    """
    return fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


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
