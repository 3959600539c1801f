"""X-volution: On the unification of convolution and self-attention.

Chen, Wang and Ni, 2021, https://arxiv.org/abs/2106.02253. Needs torch only.
"""

import copy
import re

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ..core.reparameterization import BranchReparameterization
from ..errors import InputError
from .branches import chain, fuse_norm, init_silent, init_unchanging
from .dynamic import PSSA, Dynamic, DynamicConv, Involution, SelfAttention

#: Name of a second branch -> class.
BRANCHES: dict[str, type[Dynamic]] = {'pssa': PSSA, 'sa': SelfAttention, 'involution': Involution}


class XVolution(BranchReparameterization):
    """Sum of a convolution and a branch whose kernel depends on the input, each with a BatchNorm.

    It folds into one dynamic convolution. The authors published no code, and the paper leaves details open.
    This table distinguishes the paper from our reading of it:

    =============================================  ==========================================================
    y = BN(conv(x)) + BN(PSSA(x))                  paper
    PSSA: shift the map by each offset u,          paper; our reading: the offsets are those of the
    multiply it elementwise by the map itself,     convolution's own window, so its dilation is the length
    take a weighted sum                            of a shift
    weights of the sum: a_{c,u} per channel and    our reading: PSSA(x)_p = W^v (x_p ⊙ Σ_u a_u ⊙ x_{p+u}),
    offset; values from a 1 x 1 convolution W^v    which is W^v (x ⊙ depthwise(x))
    deployed: Σ_u (w^A(x_p, x_{p+u}) + w^c_u)      paper, with both BatchNorms folded in; in our reading
    x_{p+u} + b                                    w^A_u = γ/σ ⊙ W^v diag(a_u ⊙ x_p)
    SA: softmax over a k x k window                paper; our reading: eight heads, scaled by 1/√d, no
                                                   positional encoding, no weight beyond the border
    involution instead of self-attention           paper; the layer is the one of involution's authors
    at the 3 x 3 convolutions of stage 3           best place in the paper
    =============================================  ==========================================================

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple[int, int]): k, odd. Default: 3.
        stride (int | tuple[int, int]): Stride. Default: 1.
        padding (int | tuple[int, int]): dilation · (k // 2), so that the window is centered at the output's
            position. Default: 1.
        dilation (int | tuple[int, int]): Dilation of both branches. Default: 1.
        groups (int): Groups of both branches. Default: 1.
        branch (str): ``'pssa'``, ``'sa'`` (self-attention over the window) or ``'involution'``.
            Default: ``'pssa'``.
        convolution (bool): Whether to include the convolution. Without it, the layer is the paper's baseline.
            Default: True.
        init_identity (bool): Start as the plain convolution: its BatchNorm changes nothing, and the BatchNorm
            of the second branch outputs 0. For pretrained networks in which BatchNorms are in eval mode, or
            in which another BatchNorm follows. Default: False.

    Raises:
        InputError: If the branch is unknown, the kernel is not odd, the padding is not dilation · (k // 2),
            or ``init_identity`` is set without the convolution.

    Example:
        >>> layer = XVolution(16, 32, stride=2).eval()
        >>> x = torch.randn(2, 16, 9, 9)
        >>> merged = layer.to_single_layer()
        >>> torch.allclose(merged(x), layer(x), atol=1e-5)
        True
        >>> merged.kernel(x).shape  # at every position
        torch.Size([2, 32, 16, 9, 5, 5])
    """

    main_weight = 'static.conv'
    state_dict_marker = 'dynamic'
    branch_ends = ('static.norm', 'dynamic.norm')
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
            raise InputError(f'XVolution has no branch {branch!r}; it has {", ".join(BRANCHES)}')
        if init_identity and not convolution:
            raise InputError(
                'XVolution without its convolution cannot start as the plain convolution; omit init_identity'
            )
        if not all(k % 2 for k in _pair(kernel_size)):
            raise InputError(
                f'XVolution replaces a convolution with an odd kernel, not one with a kernel of {kernel_size}'
            )
        window = in_channels, out_channels, kernel_size, stride, dilation, groups
        dynamic = BRANCHES[branch](*window)
        if _pair(padding) != dynamic.padding:
            raise InputError(
                f'XVolution needs a padding of {dynamic.padding} for a kernel of {kernel_size}, not {padding}'
            )
        self.init_identity = init_identity
        self.dynamic = chain(out_channels, branch=dynamic)
        self.static = None
        if convolution:
            options = {'padding': padding, 'dilation': dilation, 'groups': groups, 'bias': False}
            self.static = chain(
                out_channels, conv=nn.Conv2d(in_channels, out_channels, kernel_size, stride, **options)
            )
        else:
            self.main_weight = None
        self.init_weights()

    def init_weights(self) -> None:
        """Set torch's initial values everywhere except in the convolution, then apply ``init_identity``."""
        for module in [*self.dynamic.modules(), *([] if self.static is None else [self.static.norm])]:
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        if self.init_identity:
            init_unchanging(self.static.norm)
            init_silent(self.dynamic.norm)

    @classmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the names of the 3 x 3 convolutions of stage 3."""
        return [name for name in super().default_sites(model) if re.search(r'(^|\.)layer3\.', name)]

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why :meth:`default_sites` finds nothing."""
        return 'has no 3 x 3 convolution in a module named layer3, the third stage of a ResNet'

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, deploy: bool = False, **options) -> 'XVolution | DynamicConv':
        """Make one that replaces a convolution.

        Args:
            layer (nn.Conv2d): The convolution.
            deploy (bool): Make the merged layer, to load deployed weights. Default: False.
            **options: ``branch``, ``convolution`` and ``init_identity``.

        Returns:
            XVolution | DynamicConv: On the convolution's device, of its shape and dtype.
        """
        made = super().from_layer(layer, **options)
        return made.to_single_layer() if deploy else made

    @classmethod
    def deployed_options(cls, options: dict, network: nn.Module | None) -> dict | None:
        """Return the options that build the dynamic convolutions; None if there are only stock convolutions.

        Args:
            options (dict): The options in the trained network's config, including ``type`` and ``sites``.
            network (nn.Module, optional): The folded network, if it is known.

        Returns:
            dict | None: See :meth:`mmasr.core.reparameterization.Reparameterization.deployed_options`.
        """
        result = {**{key: value for key, value in options.items() if key != 'init_identity'}, 'deploy': True}
        if network is not None:
            result['sites'] = [
                name for name, module in network.named_modules() if isinstance(module, DynamicConv)
            ]
        return result if network is None or result['sites'] else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.dynamic(x)
        return y if self.static is None else y + self.static(x)

    @torch.no_grad()
    def to_single_layer(self) -> 'DynamicConv | nn.Conv2d':
        """Return the layer that computes the same in eval mode.

        It is a :class:`DynamicConv`. If γ of the second branch is 0 everywhere, the static branch alone
        remains, as a stock convolution.
        """
        weight, bias = None, 0
        if self.static is not None:
            weight, bias = fuse_norm(self.static.conv.weight, None, self.static.norm)
        norm = self.dynamic.norm
        if weight is not None and not norm.weight.any():
            conv = copy.deepcopy(self.static.conv)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias + norm.bias)
            return conv
        dynamic = copy.deepcopy(self.dynamic.branch)
        return DynamicConv(dynamic, weight, bias + dynamic.fold(norm))
