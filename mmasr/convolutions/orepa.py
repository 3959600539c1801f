"""OREPA: Online Convolutional Re-parameterization, Hu et al., CVPR 2022, https://arxiv.org/abs/2204.00826. Needs torch only.

All branches are linear, so a block is one kernel at every training step, W = Σ_b s_b ⊙ W_b (section 3.3 of the paper), s_b a
scale per output channel, and the network's own normalization follows. Kinds of branches and initial values are those of the
authors' code, https://github.com/JUGGHM/OREPA_CVPR2022, which differs from the paper in small things.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import conv2d

from ..attention import ChannelAttention
from ..core.by_class import by_class
from ..core.computed import Computed
from ..core.merge import ADAPTERS, is_merging

#: Modules of other libraries whose convolutions are no part of a network's body: they see a pooled map, or are a constant sum.
NOT_BODY = {
    f'{package}.{name}': True
    for package, names in {
        'torchvision': 'SqueezeExcitation',
        'timm': 'SqueezeExcite SEModule EffectiveSEModule SplitAttn',
        'mmdet': 'SELayer SplitAttentionConv2d',
        'mmpretrain': 'SELayer SplitAttentionConv2d',
        'segmentation_models_pytorch': 'SEModule SCSEModule',
        'ultralytics': 'DFL',
        'mmseg': 'SELayer SplitAttentionConv2d',
    }.items()
    for name in names.split()
}
#: Depthwise kernels for each input channel.
EXPANSION = 8


class OREPA(Computed):
    """The branches of a convolution that are one kernel at every step; a child of the convolution, whose own weight is the
    origin branch, so that plain weights load.

    :meth:`of` makes the kind that a kernel's size asks for: :class:`Pointwise`, :class:`Square`, :class:`Deep`. Each implements
    :meth:`kernel` and ``init_weights``.
    """

    child = 'orepa'
    title = 'OREPA'

    def __init__(self, init_identity: bool = False) -> None:
        super().__init__()
        self.init_identity = init_identity

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernel that all branches are together.

        Args:
            weight (Tensor): That of the origin branch, (out_channels, in_channels / groups, k, k).

        Returns:
            Tensor: Of the same shape.
        """
        raise NotImplementedError

    def tensors(self, layer: nn.Conv2d) -> dict[str, torch.Tensor]:
        """The squeezed kernel, computed in the parameters' own type under autocast too."""
        with torch.autocast(layer.weight.device.type, enabled=False):
            return {'weight': self.kernel(layer.weight)}

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Give the origin branch its initial values, unless it starts with weights that are there."""
        if not self.init_identity:
            _kaiming(layer.weight, a=0.0)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Raise a ValueError, with the layer's name, unless it is an nn.Conv2d with an odd square kernel and zeros around its
        input; and without groups, if the kernel is 1 x 1 or larger than 5 x 5."""
        kind = type(layer).__name__
        if not isinstance(layer, nn.Conv2d) or layer.padding_mode != 'zeros':
            raise ValueError(
                f"{name} ({kind}) can't carry an OREPA, whose branches are those of an nn.Conv2d padded with zeros"
            )
        size = layer.kernel_size
        if size[0] != size[1] or size[0] % 2 == 0:
            raise ValueError(f"{name} ({kind}) can't carry an OREPA: its kernel of {size[0]} x {size[1]} is not odd and square")
        if layer.groups > 1 and size[0] not in (3, 5):
            raise ValueError(
                f"{name} ({kind}) can't carry an OREPA: it has groups, and a kernel of {size[0]} x {size[0]}, not 3 x 3"
            )

    @classmethod
    def sites(cls, model: nn.Module) -> list[str]:
        """Names of the convolutions of a network, as the authors have it: all with an odd square kernel, but for depthwise
        ones, those of attention, the shortcuts of basic blocks, and of a block that merges all but that of its 3 x 3 branch."""
        modules = dict(model.named_modules())
        return [name for name, layer in modules.items() if isinstance(layer, nn.Conv2d) and cls._is_body(name, layer, modules)]

    @classmethod
    def _is_body(cls, name: str, layer: nn.Conv2d, modules: dict[str, nn.Module]) -> bool:
        try:
            cls.check(name, layer)
        except ValueError:
            return False
        if layer.groups == layer.in_channels > 1:
            return False
        path = name.split('.')
        for i in range(len(path)):
            outer, inner = modules['.'.join(path[:i])], '.'.join(path[i:])
            if isinstance(outer, ChannelAttention) or by_class(NOT_BODY, outer):
                return False
            if is_merging(outer) and inner not in ('branch_3x3.conv', 'conv_kxk.conv'):
                return False
            if type(outer).__name__ == 'BasicBlock' and inner.split('.')[0] in ('downsample', 'shortcut'):
                return False
        return True

    @staticmethod
    def no_sites(model: nn.Module) -> str:
        """What to say of a network in which :meth:`sites` finds nothing."""
        return 'has no convolution with an odd square kernel'

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """The options at each of some layers: in the 3 x 3 branch of a block of RepVGG, which has a 1 x 1 branch of its own,
        those of the authors' ``blocks_repvgg.py``."""
        inside = [name for name, module in model.named_modules() if by_class(ADAPTERS, module)]
        small = {name for name in names if any(name.startswith(f'{block}.') for block in inside)}
        return {name: {'centre': False, 'a': 1.0, **options} if name in small else options for name in names}

    @classmethod
    def of(cls, layer: nn.Conv2d, init_identity: bool = False, **square: bool | float) -> 'OREPA':
        """Make one for a convolution.

        Args:
            layer (nn.Conv2d): One that :meth:`check` takes. Unless ``init_identity``, its weight gets the initial values of the
                origin branch.
            init_identity (bool): Start with the other branches scaled by 0, so that nothing changes at first, for networks with
                pretrained weights. Default: False.
            **square: ``centre`` and ``a`` of :class:`Square`.

        Returns:
            OREPA: Of the layer's device and dtype; frozen if its weight is.
        """
        size, groups = layer.kernel_size[0], layer.groups
        kind = Pointwise if size == 1 else Square if size < 7 else Deep
        options = {} if kind is Pointwise else {'size': size}
        if kind is Square:
            options.update(groups=groups, **square)
        made = kind(layer.in_channels, layer.out_channels, **options, init_identity=init_identity)
        made.init_layer(layer)
        return made.to(layer.weight).requires_grad_(layer.weight.requires_grad)


class Pointwise(OREPA):
    """s₀ W + s₁ W₂ W₁: a 1 x 1 convolution beside two in a row.

    W₁ starts as the identity if there are more output than input channels, otherwise W₂.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        init_identity (bool): As of :meth:`OREPA.of`. Default: False.
    """

    def __init__(self, in_channels: int, out_channels: int, init_identity: bool = False) -> None:
        super().__init__(init_identity)
        inner = min(in_channels, out_channels)
        self.scale = nn.Parameter(torch.empty(2, out_channels))
        self.inner = nn.Parameter(torch.empty(inner, in_channels))
        self.outer = nn.Parameter(torch.empty(out_channels, 1, inner))
        self.init_weights()

    def init_weights(self) -> None:
        """Give the scales and the two kernels in a row their initial values."""
        _start(self.scale, (1.0, 0.5), self.init_identity)
        more = self.outer.shape[0] > self.inner.shape[1]
        nn.init.eye_(self.inner if more else self.outer[:, 0])
        _kaiming(self.outer if more else self.inner, a=1.0)

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Give the origin branch its initial values, unless it starts with weights that are there."""
        if not self.init_identity:
            _kaiming(layer.weight, a=1.0)

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernel that all branches are together, see :meth:`OREPA.kernel`."""
        return _Squeeze.apply(1, False, None, weight, self.scale, self.inner, self.outer, None, None, None)


class Square(OREPA):
    """Six branches of a k x k convolution: the origin; a 1 x 1 and a k x k convolution in a row; 1 x 1 convolutions before an
    average, before a frequency prior, and at the centre; a depthwise and a 1 x 1 convolution in a row.

    In the order of ``scale``; O output and I input channels, g groups. The 1 x 1 kernel before the k x k one is Id + A with A =
    0 at the start, T x I/g, with T = I, or 2 I if g > 4.

    Args:
        in_channels (int): Number I of input channels.
        out_channels (int): Number O of output channels.
        size (int): k. Default: 3.
        groups (int): Groups g. Default: 1.
        init_identity (bool): As of :meth:`OREPA.of`. Default: False.
        centre (bool): Whether there is a 1 x 1 convolution at the centre. Default: True.
        a (float): Slope of the leaky ReLU that the Kaiming initialisation reckons with. Default: 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int = 3,
        groups: int = 1,
        init_identity: bool = False,
        centre: bool = True,
        a: float = 0.0,
    ) -> None:
        super().__init__(init_identity)
        self.groups = groups
        self.a = a
        own, inner = in_channels // groups, in_channels * (2 if groups > 4 else 1)
        basis = [torch.full((out_channels, size**2), 1 / size**2), frequency_prior(out_channels, size).flatten(1)]
        if centre:
            basis.append(nn.functional.one_hot(torch.tensor(size**2 // 2), size**2).expand(out_channels, -1))
        self.starts = (0.25, 0.5, 0.25, 0.0, *([1.0] if centre else []), 0.5)
        self.register_buffer('basis', torch.stack(basis, 1), persistent=False)
        self.scale = nn.Parameter(torch.empty(len(self.starts), out_channels))
        self.inner = nn.Parameter(torch.empty(inner, own))
        self.outer = nn.Parameter(torch.empty(out_channels, size**2, inner // groups))
        self.points = nn.Parameter(torch.empty(len(basis), out_channels, own))
        self.depthwise = nn.Parameter(torch.empty(in_channels * EXPANSION, size**2))
        self.pointwise = nn.Parameter(torch.empty(in_channels * EXPANSION, out_channels // groups))
        self.init_weights()

    def init_weights(self) -> None:
        """Give the scales and all branches but the origin their initial values."""
        _start(self.scale, self.starts, self.init_identity)
        nn.init.zeros_(self.inner)
        _kaiming(self.outer, a=self.a)
        for point in self.points:
            _kaiming(point, a=self.a)
        _kaiming(self.depthwise, a=self.a)
        _kaiming(self.pointwise, a=self.a, fan_in=len(self.pointwise) // self.groups)

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Give the origin branch its initial values, unless it starts with weights that are there."""
        if not self.init_identity:
            _kaiming(layer.weight, a=self.a)

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernel that all branches are together, see :meth:`OREPA.kernel`."""
        branches = self.scale, self.inner, self.outer, self.points, self.depthwise, self.pointwise
        return _Squeeze.apply(self.groups, True, self.basis, weight, *branches)


class Deep(OREPA):
    """A large kernel that is composed of 3 x 3 ones, each with the branches of :class:`Square`, beside the layer's own: the
    paper's linear deep stem (section 3.4), three kernels for 7 x 7.

    The authors' code composes the kernels by a convolution without flipping, so what trains is that kernel, and not 3 x 3
    convolutions in a row on the feature map. They have no branch with a large kernel. Here the layer's own weight is one, so
    that plain weights load; scaled by 0 at the start, with which it starts as theirs does. With ``init_identity`` it is the
    other way round.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        size (int): k, odd.
        init_identity (bool): As of :meth:`OREPA.of`. Default: False.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, init_identity: bool = False) -> None:
        super().__init__(init_identity)
        channels = [in_channels, *[out_channels] * (size // 2 - 1)]
        self.scale = nn.Parameter(torch.empty(2, out_channels))
        self.origins = nn.ParameterList(torch.empty(out_channels, own, 3, 3) for own in channels)
        self.branches = nn.ModuleList(Square(own, out_channels) for own in channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Give the scales and the 3 x 3 kernels their initial values."""
        _start(self.scale, (0.0, 1.0), self.init_identity)
        for origin, square in zip(self.origins, self.branches, strict=True):
            _kaiming(origin, a=0.0)
            square.init_weights()

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernel that all branches are together, see :meth:`OREPA.kernel`."""
        first, *others = (square.kernel(origin) for origin, square in zip(self.origins, self.branches, strict=True))
        composed = first.transpose(0, 1)
        for other in others:
            composed = conv2d(composed, other, padding=2)
        own, deep = self.scale.view(2, -1, 1, 1, 1)
        return own * weight + deep * composed.transpose(0, 1)


def frequency_prior(channels: int, size: int) -> torch.Tensor:
    """The fixed kernels of the frequency prior (section 3.3 of the paper; the authors' code for k = 3): rows of a discrete
    cosine transform, cos(π (h + ½)(o + 1) / k) for o < O / 2, of columns cos(π (w + ½)(o + 1 − O / 2) / k) for the others.

    Args:
        channels (int): Number O of output channels.
        size (int): k.

    Returns:
        Tensor: (O, k, k).
    """
    output = torch.arange(channels, dtype=torch.double)
    rows = output < channels / 2
    frequency = torch.where(rows, output + 1, output + 1 - channels / 2)
    waves = torch.cos(math.pi / size * (torch.arange(size, dtype=torch.double) + 0.5) * frequency[:, None])
    prior = torch.where(rows[:, None, None], waves[:, :, None], waves[:, None, :])
    return prior.expand(channels, size, size).float()


@torch.no_grad()
def _kaiming(weight: torch.Tensor, a: float, fan_in: int | None = None) -> None:
    """Kaiming initialisation, uniform; an output sees ``fan_in`` inputs, by default all dimensions but the first."""
    fan_in = fan_in or weight[0].numel()
    weight.uniform_(-1, 1).mul_(math.sqrt(6 / ((1 + a**2) * fan_in)))


@torch.no_grad()
def _start(scale: torch.Tensor, values: tuple[float, ...], init_identity: bool) -> None:
    """Give scales their initial values: with ``init_identity`` 1 for the first, the origin's, and 0 for the others."""
    scale.copy_(torch.tensor([1.0, *[0.0] * (len(values) - 1)] if init_identity else values)[:, None].expand_as(scale))


class _Squeeze(torch.autograd.Function):
    """The kernel of :class:`Square`, and of :class:`Pointwise`, which has the first two branches only.

    It is linear in every branch, so its gradients need the parameters and the gradient of the kernel: nothing else is kept,
    where automatic differentiation keeps the kernel of every branch. Kernels are laid out in ``rows`` (o, k, i) and ``columns``
    (i, k, o) on the way, since the products run over large matrices then, and are scaled in place.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        groups: int,
        identity: bool,
        basis: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor,
        *branches: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(basis, weight, scale, *branches)
        ctx.groups, ctx.identity = groups, identity
        parts = _Parts(groups, identity, basis, weight, scale, *branches)
        kernel = parts.weight * parts.s[0]
        rows = torch.einsum('gokt,gti->goki', parts.outer, parts.inner).mul_(parts.s[1])
        if basis is not None:
            rows += torch.einsum('gopk,pgoi->goki', parts.basis * parts.s_points, parts.points)
        kernel += rows.mT
        del rows
        if basis is not None:
            columns = torch.einsum('gitk,gito->giko', parts.depthwise, parts.pointwise).mul_(parts.s_pointwise)
            kernel += columns.permute(0, 3, 1, 2)
        return kernel.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        basis, weight, scale, *branches = ctx.saved_tensors
        parts = _Parts(ctx.groups, ctx.identity, basis, weight, scale, *branches)
        with torch.autocast(gradient.device.type, enabled=False):
            d = gradient.reshape(parts.weight.shape)
            rows = d.mT.clone(memory_format=torch.contiguous_format)
            outer = torch.einsum('goki,gti->gokt', rows, parts.inner)
            scales = [torch.einsum('goik,goik->go', d, parts.weight), torch.einsum('gokt,gokt->go', outer, parts.outer)]
            points = depthwise = pointwise = None
            if basis is not None:
                points = torch.einsum('gopk,goki->gopi', parts.basis, rows).movedim(2, 0)
                scales += torch.einsum('pgoi,pgoi->pgo', points, parts.points).unbind()
                columns = d.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
                pointwise = torch.einsum('gitk,giko->gito', parts.depthwise, columns)
                scales.append((pointwise * parts.pointwise).sum((1, 2)))
                depthwise = torch.einsum('gito,giko->gitk', parts.pointwise, columns.mul_(parts.s_pointwise))
                points.mul_(parts.s[2:-1, ..., 0])
                pointwise.mul_(parts.s_pointwise)
            inner = parts.outer.flatten(1, 2).mT @ rows.mul_(parts.s[1]).flatten(1, 2)
            outer.mul_(parts.s[1])
        gradients = d * parts.s[0], torch.stack(scales), inner, outer, points, depthwise, pointwise
        inputs = weight, scale, *branches
        return None, None, None, *(g if g is None else g.reshape(x.shape) for g, x in zip(gradients, inputs, strict=True))


class _Parts:
    """The tensors of :class:`_Squeeze` by group g: o outputs and i inputs of a group, k positions of a kernel, t channels
    between two convolutions in a row, p kernels of 1 x 1."""

    def __init__(
        self,
        groups: int,
        identity: bool,
        basis: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor,
        inner: torch.Tensor,
        outer: torch.Tensor,
        points: torch.Tensor | None,
        depthwise: torch.Tensor | None,
        pointwise: torch.Tensor | None,
    ) -> None:
        outputs, own = weight.shape[0] // groups, weight.shape[1]
        self.weight = weight.reshape(groups, outputs, own, -1)
        self.s = scale.view(-1, groups, outputs, 1, 1)
        self.outer = outer.view(groups, outputs, *outer.shape[1:])
        if identity:  # once more for twice as many channels
            inner = inner.view(-1, own, own) + torch.eye(own, dtype=inner.dtype, device=inner.device)
        self.inner = inner.reshape(groups, -1, own)
        if basis is not None:
            self.points = points.view(-1, groups, outputs, own)
            self.basis = basis.view(groups, outputs, *basis.shape[1:])
            self.s_points = self.s[2:-1, ..., 0].permute(1, 2, 0, 3)
            self.s_pointwise = self.s[-1].view(groups, 1, 1, outputs)
            self.depthwise = depthwise.view(groups, own, EXPANSION, -1)
            self.pointwise = pointwise.view(groups, own, EXPANSION, outputs)
