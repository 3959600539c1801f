"""RepVGG, and QARepVGG, its variant for int8. Needs torch only.

RepVGG: Making VGG-style ConvNets Great Again, Ding et al., CVPR 2021, https://arxiv.org/abs/2101.03697. Make
RepVGG Greater Again: A Quantization-aware Approach, Chu et al., AAAI 2024, https://arxiv.org/abs/2212.01593.
"""

import torch
from torch import nn

from .branches import (
    Branches,
    KernelAndBias,
    center,
    chain,
    fuse_norm,
    identity_kernel,
    init_unchanging,
)


class RepVGG(Branches):
    """Sum of a k x k convolution, a 1 x 1 convolution and the identity, each with a BatchNorm.

    See section 3.2 of RepVGG's paper, and section 3.3 for the merged kernel. The paper has k = 3. The
    identity is a BatchNorm alone. It exists only if there are as many outputs as inputs and the stride is 1.

    Args:
        *args: Arguments of :class:`mmasr.convolutions.branches.Branches`, with k of at least 3.
        **kwargs: The same by name.

    Raises:
        InputError: See :class:`mmasr.convolutions.branches.Branches`; and if k is 1.
    """

    smallest_kernel = 3
    state_dict_children = r'(identity )?origin point'

    def make(self) -> None:
        """Make the branches."""
        self.branches = 'origin', 'point'
        self.origin = self.make_origin()
        self.point = chain(self.out_channels, conv=self.make_point())
        if self.has_identity:
            self.branches += ('identity',)
            self.identity = chain(self.out_channels)


class QARepVGG(Branches):
    """Sum of a k x k convolution with a BatchNorm, a 1 x 1 convolution and the identity; a BatchNorm follows.

    Only the k x k convolution has a BatchNorm of its own (Fig. 1 of QARepVGG's paper). It
    replaces RepVGG where the merged convolution is to run in int8. The BatchNorms of RepVGG's branches
    multiply the kernels by γ / σ. Where a channel hardly varies, σ is small and this factor is large,
    especially that of the identity. Few such channels then set the range of the int8 weights, and the others
    are left with few steps. The sum of three normalized branches also widens the range of the feature maps.
    In the paper, RepVGG loses more than 20 points of ImageNet top-1 accuracy in int8, and QARepVGG about 2.

    Here the identity adds exactly 1 to a weight, and the last BatchNorm controls the variance of the sum. The
    identity exists only if there are as many outputs as inputs and the stride is 1.

    Args:
        *args: Arguments of :class:`mmasr.convolutions.branches.Branches`, with k of at least 3. With
            ``init_identity``, the 1 x 1 kernel starts as the negative identity, so that both cancel exactly,
            and both BatchNorms change nothing.
        **kwargs: The same by name.

    Raises:
        InputError: See :class:`mmasr.convolutions.branches.Branches`; and if k is 1.
    """

    smallest_kernel = 3
    state_dict_children = 'norm origin point'
    branch_ends = ('norm',)

    def make(self) -> None:
        """Make the branches."""
        self.branches = ('origin',)
        self.origin = self.make_origin()
        self.point = self.make_point()
        self.norm = nn.BatchNorm2d(self.out_channels)

    def _point_kernel(self) -> torch.Tensor:
        """Return the 1 x 1 kernel of the branches without BatchNorm."""
        weight = self.point.weight.double()
        return weight + identity_kernel(weight, self.groups) if self.has_identity else weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the initial values that differ from torch's."""
        super().init_weights()
        if self.init_identity:
            nn.init.zeros_(self.origin.norm.bias)
            init_unchanging(self.norm)
            self.point.weight.zero_().sub_(self._point_kernel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.point(x)
        if self.has_identity:  # first these two, which cancel exactly at the start of init_identity
            y = y + x
        return self.norm(self.origin(x) + y)

    def merged_kernel(self) -> KernelAndBias:
        """Return the kernel and the bias of the whole; see :meth:`Branches.merged_kernel`."""
        weight, bias = super().merged_kernel()  # of the origin, which alone has a BatchNorm
        return fuse_norm(weight + center(self._point_kernel(), self.size), bias, self.norm)
