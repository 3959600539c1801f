"""MobileOne: An Improved One millisecond Mobile Backbone.

Vasu et al., CVPR 2023, https://arxiv.org/abs/2206.04040. Needs torch only.
"""

from torch import nn

from ..errors import InputError
from .branches import Branches, chain


class MobileOne(Branches):
    """Sum of several k x k convolutions, a 1 x 1 convolution and the identity, each with a BatchNorm.

    See section 3.3 of the paper. The 1 x 1 convolution, the paper's scale branch, exists only if k
    is not 1. The identity is a BatchNorm alone. It exists only if there are as many outputs as inputs and the
    stride is 1. The paper uses the block for depthwise and 1 x 1 convolutions; other groups work too.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2). Default: 1.
        dilation (int | tuple[int, int]): Dilation, the same in both directions. Default: 1.
        groups (int): Groups. Default: 1.
        copies (int): Number of k x k convolutions. The paper has 4 in MobileOne-S0 and 1 in the larger
            networks. Default: 4.
        init_identity (bool): See :class:`mmasr.convolutions.branches.Branches`. Default: False.

    Raises:
        InputError: See :class:`mmasr.convolutions.branches.Branches`; and if ``copies`` is less than 1.
    """

    state_dict_children = r'(copies )?(identity )?origin( scale)?'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        copies: int = 4,
        init_identity: bool = False,
    ) -> None:
        if not isinstance(copies, int) or copies < 1:
            raise InputError(f'MobileOne needs at least one convolution, not `copies`={copies!r}')
        self.copy_count = copies  # before the base class makes the branches
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, init_identity
        )

    @classmethod
    def is_default_site(cls, layer: nn.Conv2d) -> bool:
        """Return True: every convolution of the body that it supports is a site by default."""
        return True

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why :meth:`default_sites` finds nothing."""
        return 'has no convolution that MobileOne supports, with an odd square kernel'

    def make(self) -> None:
        """Make the branches."""
        self.origin = self.make_origin()
        self.copies = nn.ModuleList(self.make_origin() for _ in range(self.copy_count - 1))
        self.branches = 'origin', *(f'copies.{i}' for i in range(self.copy_count - 1))
        if self.size > 1:
            self.branches += ('scale',)
            self.scale = chain(self.out_channels, conv=self.make_point())
        if self.has_identity:
            self.branches += ('identity',)
            self.identity = chain(self.out_channels)
