"""ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks.

Ding et al., ICCV 2019, https://arxiv.org/abs/1908.03930. Needs torch only.
"""

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.modules.utils import _pair

from ..core.reparameterization import BranchReparameterization
from ..errors import InputError
from .branches import fuse_norm, init_silent, init_unchanging


class ACNet(BranchReparameterization):
    """Sum of a 3 x 3, a 3 x 1 and a 1 x 3 convolution, each with a BatchNorm; folds into a 3 x 3 convolution.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): Kernel size, which must be 3. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): Padding, at least the dilation, so that the narrow kernels are
            centered at the same positions as the 3 x 3 kernel. Default: 1.
        dilation (int | tuple[int, int]): Dilation. Default: 1.
        groups (int): Groups. Default: 1.
        init_identity (bool): Start as the plain convolution: the BatchNorm of the 3 x 3 branch changes
            nothing, and the other two output 0. For pretrained networks in which BatchNorms are in eval mode,
            or in which another BatchNorm follows. Default: False.

    Raises:
        InputError: If the kernel is not 3 x 3, or the padding is less than the dilation.
    """

    main_weight = 'square.0'
    state_dict_marker = 'square'
    branch_ends = ('square.1', 'vertical.1', 'horizontal.1')

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
        if _pair(kernel_size) != (3, 3):
            raise InputError(f'ACNet replaces a 3 x 3 convolution, not one with a kernel of {kernel_size}')
        narrow = [p - d for p, d in zip(_pair(padding), _pair(dilation), strict=True)]
        if min(narrow) < 0:
            raise InputError(f'ACNet needs a padding of at least its dilation, {dilation}, not {padding}')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.branch_options = {'stride': stride, 'dilation': dilation, 'groups': groups}
        self.padding = padding = _pair(padding)
        self.init_identity = init_identity
        self.square = self._branch((3, 3), padding)
        self.vertical = self._branch((3, 1), (padding[0], narrow[1]))
        self.horizontal = self._branch((1, 3), (narrow[0], padding[1]))
        self.init_weights()

    def _branch(self, kernel: tuple[int, int], padding: tuple[int, int]) -> nn.Sequential:
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, kernel, padding=padding, bias=False, **self.branch_options
        )
        return nn.Sequential(conv, nn.BatchNorm2d(self.out_channels))

    def init_weights(self) -> None:
        """Set γ of the three BatchNorms to 1/3, like the code of ACNet's authors for CIFAR.

        With ``init_identity``, only the 3 x 3 branch has an effect. See
        :meth:`mmasr.core.reparameterization.Reparameterization.init_weights`.
        """
        if self.init_identity:
            init_unchanging(self.square[1])
            init_silent(self.vertical[1])
            init_silent(self.horizontal[1])
        else:
            for bn in (self.square[1], self.vertical[1], self.horizontal[1]):
                nn.init.constant_(bn.weight, 1 / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self.square(x) + self.vertical(x) + self.horizontal(x)

    @torch.no_grad()
    def to_single_layer(self) -> nn.Conv2d:
        """Return the convolution with bias that computes the same in eval mode (section 3.3 of the paper)."""
        branches = {self.square: (0, 0, 0, 0), self.vertical: (1, 1, 0, 0), self.horizontal: (0, 0, 1, 1)}
        weight, bias = 0, 0
        for (conv, bn), sides in branches.items():
            branch_weight, branch_bias = fuse_norm(conv.weight.double(), None, bn)  # terms may nearly cancel
            weight, bias = weight + pad(branch_weight, sides), bias + branch_bias
        options = {'padding': self.padding, **self.branch_options}
        conv = nn.Conv2d(self.in_channels, self.out_channels, 3, **options).to(self.square[0].weight)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv
