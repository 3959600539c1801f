"""Base class of convolutions that train with branches on feature maps, and helpers. Needs torch only."""

from abc import abstractmethod
from collections import OrderedDict

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..core.reparameterization import BranchReparameterization
from ..errors import InputError

KernelAndBias = tuple[torch.Tensor, torch.Tensor | None]


class Branches(BranchReparameterization):
    """Base class of convolutions with branches on feature maps, which are summed.

    Every branch ends with a BatchNorm ``norm``. A subclass makes the branches in :meth:`make` and sets
    :attr:`branches`. Where a branch is more than one convolution, :meth:`kernel` returns its kernel and bias.

    The first branch, ``origin``, has the convolution that is replaced.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2), so that all branches are centered at the same
            positions. Default: 1.
        dilation (int | tuple[int, int]): Dilation of all k x k windows, the same in both directions.
            Default: 1.
        groups (int): Groups. Default: 1.
        init_identity (bool): Start as the plain convolution, bit for bit in eval mode and float32: the
            BatchNorm of the origin changes nothing, and the other BatchNorms output 0. For pretrained
            networks in which BatchNorms are in eval mode, or in which another BatchNorm follows.
            Default: False.

    Raises:
        InputError: If the kernel is not odd and square or is smaller than :attr:`smallest_kernel`, the
            padding is not dilation · (k // 2), or the two dilations differ.
    """

    main_weight = 'origin.conv'
    state_dict_marker = 'origin'
    #: Size of the smallest kernel that it replaces.
    smallest_kernel = 1
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
        if size[0] < self.smallest_kernel:
            smallest = f'{self.smallest_kernel} x {self.smallest_kernel}'
            raise InputError(
                f'{name} replaces a convolution with a kernel of {smallest} or more, not '
                f'{size[0]} x {size[0]}'
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

    def kernel(self, branch: str) -> KernelAndBias:
        """Return the kernel and bias that a branch amounts to in eval mode, before its last BatchNorm.

        Default: the kernel of its convolution ``conv``, in the center; the identity for ``identity``.

        Args:
            branch (str): Name of the branch.

        Returns:
            tuple[Tensor, Tensor | None]: Kernel of shape (out_channels, in_channels / groups, k, k), and bias
            of shape (out_channels,) or None.
        """
        if branch == 'identity':
            return identity_kernel(self.origin.conv.weight, self.groups), None
        conv = self.get_submodule(branch).conv
        dilation = 1 if conv.kernel_size == self.origin.conv.kernel_size else conv.dilation[0]
        return center(conv.weight, self.size, dilation), None

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
    def has_identity(self) -> bool:
        """True if the identity can be a branch: as many outputs as inputs, and a stride of 1."""
        return self.in_channels == self.out_channels and self.stride == (1, 1)

    def make_origin(self) -> nn.Sequential:
        """Make a convolution of the shape of the replaced one, with a BatchNorm."""
        options = {'stride': self.stride, 'padding': self.padding, 'dilation': self.dilation}
        return chain(
            self.out_channels, conv=self.conv(self.in_channels, self.out_channels, self.size, **options)
        )

    def make_point(self) -> nn.Conv2d:
        """Make a 1 x 1 convolution at the positions of the replaced one."""
        return self.conv(self.in_channels, self.out_channels, 1, stride=self.stride)

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
            first, *others = (self.get_submodule(branch).norm for branch in self.branches)
            init_unchanging(first)
            for norm in others:
                init_silent(norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        first, *others = (self.get_submodule(branch) for branch in self.branches)
        result = first(x)
        for branch in others:
            result = result + branch(x)
        return result

    def merged_kernel(self) -> KernelAndBias:
        """Return the kernel, (out_channels, in_channels / groups, k, k), and the bias of the whole sum.

        Both are summed in double precision, since the terms may nearly cancel.
        """
        weight, bias = 0, 0
        for branch in self.branches:
            w, b = self.kernel(branch)
            w, b = fuse_norm(w.double(), b if b is None else b.double(), self.get_submodule(branch).norm)
            weight, bias = weight + w, bias + b
        return weight, bias

    @torch.no_grad()
    def to_single_layer(self) -> nn.Conv2d:
        """Return the convolution, with bias, that computes the same in eval mode."""
        weight, bias = self.merged_kernel()
        options = {name: getattr(self, name) for name in ('stride', 'padding', 'dilation', 'groups')}
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.size, **options).to(
            self.origin.conv.weight
        )
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv


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


def chain(channels: int, **layers: nn.Module) -> nn.Sequential:
    """Make a sequence of named layers that ends with a BatchNorm ``norm``.

    Args:
        channels (int): Number of channels of the BatchNorm.
        **layers (nn.Module): The other layers, in order.

    Returns:
        nn.Sequential: The sequence.
    """
    return nn.Sequential(OrderedDict(**layers, norm=nn.BatchNorm2d(channels)))


def init_unchanging(norm: nn.Module) -> None:
    """Set a BatchNorm so that it changes nothing in eval mode; its bias stays.

    It divides by the square root of running_var + ε. This sum is exactly 1 in the type of the BatchNorm, if
    that is float32 or float64, so that the output is bit for bit the input. Half precision rounds it.
    """
    norm.reset_running_stats()
    norm.running_var.sub_(norm.eps)
    nn.init.ones_(norm.weight)


def init_silent(norm: nn.Module) -> None:
    """Set a BatchNorm so that it outputs 0."""
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)


def center(weight: torch.Tensor, size: int, dilation: int = 1) -> torch.Tensor:
    """Put a kernel into the center of a larger one that is 0 elsewhere.

    Args:
        weight (Tensor): Kernel, (O, I / g, k, k), with k odd.
        size (int): Size K of the larger kernel, odd.
        dilation (int): Distance r between the weights; r · (k - 1) + 1 is at most K. Default: 1.

    Returns:
        Tensor: Kernel of shape (O, I / g, K, K).
    """
    result = weight.new_zeros(*weight.shape[:2], size, size)
    first = size // 2 - dilation * (weight.shape[-1] // 2)
    places = slice(first, size - first, dilation)
    result[:, :, places, places] = weight
    return result


def identity_kernel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the kernel of a convolution that returns its input.

    Args:
        weight (Tensor): A kernel of the same shape (C, C / g, k, k), type and device.
        groups (int): Groups g.

    Returns:
        Tensor: The kernel.
    """
    return nn.init.dirac_(torch.empty_like(weight), groups)


def fuse_norm(weight: torch.Tensor, bias: torch.Tensor | None, norm: nn.Module) -> KernelAndBias:
    """Fuse a convolution with the BatchNorm after it, in eval mode (transform I of the paper).

    Args:
        weight (Tensor): Kernel of the convolution, (O, I / g, k, k).
        bias (Tensor, optional): Bias of the convolution, (O,).
        norm (nn.Module): The BatchNorm.

    Returns:
        tuple[Tensor, Tensor]: Kernel of the same shape, and bias (O,), both computed in the kernel's type.
    """
    tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, var, scale, shift = (tensor.to(weight.dtype) for tensor in tensors)
    return fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift)
