"""X-volution: On the unification of convolution and self-attention, Chen, Wang and Ni, 2021, https://arxiv.org/abs/2106.02253.
Needs torch only."""

import copy
import math
import re

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ..core.merge import Merging
from .dbb import chain, fused
from .dynamic import PSSA, Dynamic, DynamicConv, Involution, SelfAttention

#: The second branches.
BRANCHES: dict[str, type[Dynamic]] = {'pssa': PSSA, 'sa': SelfAttention, 'involution': Involution}


class XVolution(Merging):
    """A convolution and a second branch whose kernel depends on the input, each with a BatchNorm, added; one dynamic
    convolution once it is trained.

    What is the paper's, no code of which was published, and what is our reading of what it leaves open:

    ==============================================  ======================================================================
    y = BN(conv(x)) + BN(PSSA(x))                   the paper's
    PSSA: shift the map by each offset u, multiply  the paper's; offsets are those of the convolution's own window, so its
    it with the map, take a weighted sum            dilation is the length of a shift (ours)
    weights of the sum: a_{c,u} for each channel    ours: PSSA(x)_p = W^v (x_p ⊙ Σ_u a_u ⊙ x_{p+u}), that is
    and offset; values by a 1 x 1 map W^v           W^v (x ⊙ depthwise(x))
    deployed: Σ_u (w^A(x_p, x_{p+u}) + w^c_u)       the paper's, both BatchNorms folded in; with our reading
    x_{p+u} + b                                     w^A_u = γ/σ ⊙ W^v diag(a_u ⊙ x_p)
    SA: softmax over a k x k window                 the paper's; eight heads, scaled by 1/√d, no encoding of positions,
                                                    nothing beyond the border (ours)
    involution in the place of self-attention       the paper's; the layer is that of the involution's authors
    3 x 3 convolutions of stage 3                   the paper's best place
    ==============================================  ======================================================================

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2), so that a window is around its own position. Default: 1.
        dilation (int | tuple[int, int]): Dilation of both branches. Default: 1.
        groups (int): Groups of both branches. Default: 1.
        branch (str): ``'pssa'``, ``'sa'`` (self-attention over the window) or ``'involution'``. Default: ``'pssa'``.
        convolution (bool): Whether there is a convolution beside it; without, it is the paper's baseline. Default: True.
        init_identity (bool): Start as the plain convolution: its BatchNorm changes nothing, that of the second branch gives 0.
            For networks with pretrained weights, in which BatchNorms are in eval mode or another one follows. Default: False.

    Raises:
        ValueError: If the branch is unknown, the kernel is not odd, the padding is another, or there is no convolution to start
            as.

    Example:
        >>> layer = XVolution(16, 32, stride=2).eval()
        >>> x = torch.randn(2, 16, 9, 9)
        >>> merged = layer.merged()
        >>> torch.allclose(merged(x), layer(x), atol=1e-5)
        True
        >>> merged.kernel(x).shape  # at every position
        torch.Size([2, 32, 16, 9, 5, 5])
    """

    heir = 'static.conv'
    mark = 'dynamic'
    outputs = ('static.norm', 'dynamic.norm')
    depends_on_input = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        branch: str = 'pssa',
        convolution: bool = True,
        init_identity: bool = False,
    ) -> None:
        super().__init__()
        if branch not in BRANCHES:
            raise ValueError(f'XVolution has no branch {branch!r}; it has {", ".join(BRANCHES)}')
        if init_identity and not convolution:
            raise ValueError('XVolution without its convolution has nothing to start as: leave init_identity out')
        if not all(k % 2 for k in _pair(kernel_size)):
            raise ValueError(f'XVolution takes the place of a convolution with an odd kernel, not one of {kernel_size}')
        window = in_channels, out_channels, kernel_size, stride, dilation, groups
        dynamic = BRANCHES[branch](*window)
        if _pair(padding) != dynamic.padding:
            raise ValueError(f'XVolution needs a padding of {dynamic.padding} around a kernel of {kernel_size}, not {padding}')
        self.init_identity = init_identity
        self.dynamic = chain(out_channels, branch=dynamic)
        self.static = None
        if convolution:
            options = {'padding': padding, 'dilation': dilation, 'groups': groups, 'bias': False}
            self.static = chain(out_channels, conv=nn.Conv2d(in_channels, out_channels, kernel_size, stride, **options))
        else:
            self.heir = None
        self.init_weights()

    def init_weights(self) -> None:
        """Give all but the convolution the initial values of torch's own layers, and start as the identity if asked to."""
        for module in [*self.dynamic.modules(), *([] if self.static is None else [self.static.norm])]:
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        if self.init_identity:
            nn.init.constant_(self.static.norm.weight, math.sqrt(1 + self.static.norm.eps))
            nn.init.zeros_(self.dynamic.norm.weight)

    @classmethod
    def sites(cls, model: nn.Module) -> list[str]:
        """Names of the layers of a network that it takes the place of by default: the 3 x 3 convolutions of stage 3."""
        return [name for name in super().sites(model) if re.search(r'(^|\.)layer3\.', name)]

    @staticmethod
    def no_sites(model: nn.Module) -> str:
        """What to say of a network in which :meth:`sites` finds nothing."""
        return 'has no 3 x 3 convolution in a `layer3`, as ResNets call their third stage'

    @classmethod
    def of(cls, conv: nn.Conv2d, deploy: bool = False, **options) -> 'XVolution | DynamicConv':
        """Make one in the place of a convolution.

        Args:
            conv (nn.Conv2d): The convolution.
            deploy (bool): Make what it becomes, for weights that are merged. Default: False.
            **options: ``branch``, ``convolution`` and ``init_identity``.

        Returns:
            XVolution | DynamicConv: Of the convolution's shape, device and dtype.
        """
        made = super().of(conv, **options)
        return made.merged() if deploy else made

    @classmethod
    def deployed(cls, options: dict, network: nn.Module | None) -> dict | None:
        """See :meth:`Merging.deployed`: dynamic convolutions where they are; None where all became stock ones."""
        result = {**{key: value for key, value in options.items() if key != 'init_identity'}, 'deploy': True}
        if network is not None:
            result['sites'] = [name for name, module in network.named_modules() if isinstance(module, DynamicConv)]
        return result if network is None or result['sites'] else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.dynamic(x)
        return y if self.static is None else y + self.static(x)

    @torch.no_grad()
    def merged(self) -> 'DynamicConv | nn.Conv2d':
        """The one layer that computes the same in eval mode; a stock convolution where γ of the second branch is 0."""
        weight, bias = (None, 0) if self.static is None else fused(self.static.conv.weight, None, self.static.norm)
        norm = self.dynamic.norm
        if weight is not None and not norm.weight.any():
            conv = copy.deepcopy(self.static.conv)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias + norm.bias)
            return conv
        dynamic = copy.deepcopy(self.dynamic.branch)
        return DynamicConv(dynamic, weight, bias + dynamic.fold(norm))
