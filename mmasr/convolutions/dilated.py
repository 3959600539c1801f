"""Dilated Reparam Block of UniRepLKNet.

UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
Recognition, Ding et al., CVPR 2024, https://arxiv.org/abs/2311.15599. Needs torch only.
"""

from collections.abc import Sequence

from torch import nn

from ..errors import InputError
from .branches import Branches, chain

#: Size K of the large kernel -> sizes k and dilations r of the small ones, as in the authors' code. The last
#: ones are for larger kernels too.
SMALL_KERNELS = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class DilatedReparam(Branches):
    """Sum of a depthwise convolution with a large kernel and dilated ones with small kernels.

    Each has a BatchNorm. A k x k kernel with the dilation r is a kernel of size r · (k - 1) + 1 with zeros
    between the weights (section 3.1 and Fig. 2 of the paper). So all of them merge into the large kernel.

    Args:
        in_channels (int): Number C of channels.
        out_channels (int): C as well.
        kernel_size (int | tuple[int, int]): K, odd, at least 5. Default: 7.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): K // 2. Default: 3.
        dilation (int | tuple[int, int]): 1. Default: 1.
        groups (int): C as well. Default: 1.
        small_kernels (Sequence[tuple[int, int]], optional): Size k, odd, and dilation r of each small kernel,
            with r · (k - 1) + 1 of at most K. Default: those of :data:`SMALL_KERNELS`.
        init_identity (bool): See :class:`mmasr.convolutions.branches.Branches`. Default: False.

    Raises:
        InputError: See :class:`mmasr.convolutions.branches.Branches`; and if the convolution is not
            depthwise, K is less than 5, its dilation is not 1, or a small kernel does not fit.
    """

    smallest_kernel = 5
    state_dict_children = 'origin small'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 7,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 3,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        small_kernels: Sequence[tuple[int, int]] | None = None,
        init_identity: bool = False,
    ) -> None:
        self.small_kernels = small_kernels  # before the base class makes the branches
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, init_identity
        )

    @classmethod
    def is_default_site(cls, layer: nn.Conv2d) -> bool:
        """Return whether the kernel is 7 x 7 or larger."""
        return layer.kernel_size[0] >= 7

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why :meth:`default_sites` finds nothing."""
        return 'has no depthwise convolution with a kernel of 7 x 7 or more'

    def make(self) -> None:
        """Make the branches.

        Raises:
            InputError: If the convolution or a small kernel is not supported.
        """
        if not self.in_channels == self.out_channels == self.groups:
            raise InputError(
                'DilatedReparam replaces a depthwise convolution, with as many groups as inputs and outputs, '
                f'not one of {self.in_channels} inputs, {self.out_channels} outputs, groups={self.groups}'
            )
        if self.dilation != 1:
            raise InputError(
                f'DilatedReparam replaces a convolution with a dilation of 1, not {self.dilation}'
            )
        if self.small_kernels is None:
            self.small_kernels = SMALL_KERNELS[min(self.size, max(SMALL_KERNELS))]
        _check_small_kernels(self.small_kernels, self.size)
        self.origin = self.make_origin()
        self.small = nn.ModuleList()
        for k, r in self.small_kernels:
            window = {'stride': self.stride, 'padding': r * (k // 2), 'dilation': r}
            self.small.append(
                chain(self.out_channels, conv=self.conv(self.in_channels, self.out_channels, k, **window))
            )
        self.branches = 'origin', *(f'small.{i}' for i in range(len(self.small)))


def _check_small_kernels(kernels: Sequence[tuple[int, int]], size: int) -> None:
    """Check that small kernels fit into the large one."""
    try:
        fit = [k % 2 == 1 and r * (k - 1) < size and k > 0 and r > 0 for k, r in kernels]
        whole = all(isinstance(number, int) for pair in kernels for number in pair)
    except (TypeError, ValueError):  # not pairs of numbers
        fit, whole = [], False
    if not (whole and all(fit)):
        raise InputError(
            'DilatedReparam: `small_kernels` must be pairs of an odd size k and a dilation r with '
            f'r * (k - 1) + 1 of at most {size}, such as (3, 2), not {kernels!r}'
        )
