"""OREPA: Online Convolutional Re-parameterization, Hu et al., CVPR 2022, https://arxiv.org/abs/2204.00826.

All branches are linear, so a block is one kernel at every training step: W = Σ_b s_b ⊙ W_b (section 3.3 of
the paper), where s_b is a scale per output channel. The network's existing normalization follows.

The branches and their initial values are those of the authors' code,
https://github.com/JUGGHM/OREPA_CVPR2022, which differs from the paper in details. Needs torch only.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import conv2d

from ..core.body import body_convolutions
from ..core.class_surgery import stock_class, with_parameters
from ..core.compat import functorch_level, without_autocast
from ..core.merge import has_branches, merge_method
from ..core.reparameterization import ParameterReparameterization, move_like
from ..errors import InputError

#: Number of depthwise kernels per input channel.
EXPANSION = 8

#: Largest number of elements of a kernel that is squeezed together with others on a CPU.
_LARGEST_IN_BATCH = 2**14

#: Number of elements of the kernels whose gradients are computed together. As in DistributedDataParallel, the
#: gradients of the last layers need not wait for those of the first ones.
_BUCKET = 2**22

#: See :func:`_squeeze`.
_Kind = tuple[int, int, bool]

#: Dimension of each tensor of :func:`_squeezed`, from ``basis`` on, that contains the groups.
_GROUPED = 0, 0, 1, 0, 0, 1, 0, 0


class OREPA(ParameterReparameterization):
    """Branches of a convolution that are squeezed into one kernel at every step.

    OREPA is a child of the convolution. The convolution's own weight is the origin branch, so plain weights
    load.

    :meth:`from_layer` makes the subclass for the size of the kernel: :class:`OREPA1x1`, :class:`OREPAKxK` or
    :class:`OREPALargeKernel`. Each implements :meth:`kernel` and ``init_weights``.

    Args:
        init_identity (bool): See :meth:`from_layer`. Default: False.
    """

    attribute = 'orepa'
    state_dict_marker = 'orepa'
    title = 'OREPA'

    def __init__(self, init_identity: bool = False) -> None:
        super().__init__()
        self.init_identity = init_identity

    @abstractmethod
    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """Squeeze all branches into one kernel.

        Args:
            weight (Tensor): Kernel of the origin branch, (out_channels, in_channels / groups, k, k).

        Returns:
            Tensor: The squeezed kernel, of the same shape.
        """

    def effective_parameters(self, layer: nn.Conv2d) -> dict[str, torch.Tensor]:
        """Return the squeezed kernel, computed in the parameters' own dtype even under autocast."""
        with without_autocast(layer.weight.device):
            return {'weight': self.kernel(layer.weight)}

    def paper_form(self, layer: nn.Conv2d, output: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        """Add up the outputs of the branches, each on the feature map.

        Args:
            layer (nn.Conv2d): The convolution.
            output (Tensor): Its output with its own parameters: the origin branch, and the bias.
            *args (Tensor): Its input, (N, C, H, W).

        Returns:
            Tensor: The output.
        """
        if layer.bias is None:
            return self._branch_sum(layer, output, *args)
        bias = layer.bias.view(-1, 1, 1)
        return self._branch_sum(layer, output - bias, *args) + bias

    @abstractmethod
    def _branch_sum(self, layer: nn.Conv2d, origin: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add up the outputs of all branches.

        Args:
            layer (nn.Conv2d): The convolution, whose stride, padding and dilation the branches have.
            origin (Tensor): Output of the origin branch before its scale, (N, O, H', W').
            x (Tensor): Input, (N, I, H, W).

        Returns:
            Tensor: The sum, (N, O, H', W').
        """

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Set the initial values of the origin branch; with ``init_identity`` keep the layer's weight."""
        if not self.init_identity:
            _kaiming(layer.weight, a=0.0)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Check that a layer is supported.

        It must be an nn.Conv2d with zero padding and an odd square kernel. With groups, the kernel must be
        3 x 3 or 5 x 5.

        Args:
            name (str): Name of the layer, for the error.
            layer (nn.Module): Any module.

        Raises:
            InputError: If it is not.
        """
        kind = type(layer).__name__
        if not isinstance(layer, nn.Conv2d) or layer.padding_mode != 'zeros':
            raise InputError(
                f"{name} ({kind}) can't carry an OREPA: it is not an nn.Conv2d with zero padding"
            )
        size = layer.kernel_size
        if size[0] != size[1] or size[0] % 2 == 0:
            raise InputError(
                f"{name} ({kind}) can't carry an OREPA: its kernel of {size[0]} x {size[1]} is not odd and "
                'square'
            )
        if layer.groups > 1 and size[0] not in (3, 5):
            raise InputError(
                f"{name} ({kind}) can't carry an OREPA: it has groups and a kernel of {size[0]} x {size[0]}; "
                'with groups the kernel must be 3 x 3 or 5 x 5'
            )

    @classmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the names of the convolutions that the authors replace.

        These are all convolutions of the body (:func:`mmasr.core.body.body_convolutions`) with an odd square
        kernel, except depthwise convolutions and shortcuts of basic blocks. In a block that merges its own
        branches, only the convolution of the 3 x 3 branch is a site.
        """
        modules = dict(model.named_modules())
        return [
            name for name in body_convolutions(model) if cls._is_default_site(name, modules[name], modules)
        ]

    @classmethod
    def _is_default_site(cls, name: str, layer: nn.Conv2d, modules: dict[str, nn.Module]) -> bool:
        try:
            cls.check(name, layer)
        except InputError:
            return False
        if layer.groups == layer.in_channels > 1:
            return False
        path = name.split('.')
        for i in range(len(path)):
            outer, inner = modules['.'.join(path[:i])], '.'.join(path[i:])
            if has_branches(outer) and inner not in ('branch_3x3.conv', 'conv_kxk.conv'):
                return False
            if type(outer).__name__ == 'BasicBlock' and inner.split('.')[0] in ('downsample', 'shortcut'):
                return False
        return True

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why :meth:`default_sites` finds nothing."""
        return 'has no convolution with an odd square kernel'

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """Return the options at each site.

        See :meth:`mmasr.core.reparameterization.Reparameterization.options_at`. A RepVGG block has a 1 x 1
        branch itself. So OREPA in its 3 x 3 branch has the options of the authors' ``blocks_repvgg.py``.

        Args:
            model (nn.Module): The network.
            names (Sequence[str]): Names of the sites.
            options (dict): The options that the user gave.

        Returns:
            dict[str, dict]: Site -> options.
        """
        blocks = [name for name, module in model.named_modules() if merge_method(module)]
        in_block = {name for name in names if any(name.startswith(f'{block}.') for block in blocks)}
        repvgg = {'centre': False, 'a': 1.0, **options}
        return {name: repvgg if name in in_block else options for name in names}

    @classmethod
    def from_layer(
        cls, layer: nn.Conv2d, init_identity: bool = False, **kxk_options: bool | float
    ) -> 'OREPA':
        """Make the branches for a convolution.

        Args:
            layer (nn.Conv2d): A convolution that :meth:`check` accepts. Unless ``init_identity``, its weight
                is set to the initial values of the origin branch.
            init_identity (bool): Start with the scales of the other branches at 0, so that a pretrained
                network computes the same at the start. Default: False.
            **kxk_options: ``centre`` and ``a`` of :class:`OREPAKxK`.

        Returns:
            OREPA: On the layer's device and of its dtype; frozen if the layer's weight is frozen.
        """
        size, groups = layer.kernel_size[0], layer.groups
        kind = OREPA1x1 if size == 1 else OREPAKxK if size < 7 else OREPALargeKernel
        options = {} if kind is OREPA1x1 else {'size': size}
        if kind is OREPAKxK:
            options.update(groups=groups, **kxk_options)
        made = kind(layer.in_channels, layer.out_channels, **options, init_identity=init_identity)
        made.init_layer(layer)
        return move_like(made, layer.weight).requires_grad_(layer.weight.requires_grad)


def _batch_key(cls: type[OREPA], layer: nn.Conv2d) -> Hashable:
    """Return a key that is equal for convolutions that are squeezed together; see the base class.

    On a CPU, copying the branches of a large kernel takes longer than launching its operations.
    """
    weight = layer.weight
    if weight.device.type == 'cpu' and weight.numel() > _LARGEST_IN_BATCH:
        return None
    dtypes = [tensor.dtype for tensor in layer.orepa._arguments(weight)[3:] if tensor is not None]
    # A frozen host stays without gradients.
    return weight.device, *dtypes, any(parameter.requires_grad for parameter in layer.parameters())


def _prepare_batch(
    cls: type[OREPA], layers: Sequence[nn.Conv2d]
) -> Callable[[], dict[nn.Module, dict[str, torch.Tensor]]]:
    """Prepare to squeeze convolutions, in buckets of one node of autograd each."""
    ends = itertools.accumulate(layer.weight.numel() for layer in layers)
    buckets: dict[int, list[nn.Conv2d]] = {}
    for end, layer in zip(ends, layers, strict=True):
        buckets.setdefault(end // _BUCKET, []).append(layer)
    prepared, device = [*map(_prepare_bucket, buckets.values())], layers[0].weight.device

    def compute() -> dict[nn.Module, dict[str, torch.Tensor]]:
        with without_autocast(device):
            return {
                layer: {'weight': kernel}
                for bucket, arguments in prepared
                for layer, kernel in zip(bucket, _squeeze(*arguments), strict=True)
            }

    return compute


def _prepare_bucket(layers: Sequence[nn.Conv2d]) -> tuple[list[nn.Conv2d], tuple]:
    """Return convolutions, those of equal shape together, and the arguments of :func:`_squeeze` for them."""
    shapes: dict[Hashable, list[nn.Conv2d]] = {}
    for layer in layers:
        groups, _, *tensors = layer.orepa._arguments(layer.weight)
        key = groups, *(None if tensor is None else tensor.shape for tensor in tensors)
        shapes.setdefault(key, []).append(layer)
    kinds, flat = [], []
    for equal in shapes.values():
        arguments = [layer.orepa._arguments(layer.weight) for layer in equal]
        (groups, *_), (identity, *_), *columns = zip(*arguments, strict=True)
        kinds.append((len(equal), groups, identity))
        flat += itertools.chain.from_iterable(columns)
    return [*itertools.chain.from_iterable(shapes.values())], (kinds, *flat)


class OREPA1x1(OREPA):
    """Branches of a 1 x 1 convolution, s₀ W + s₁ W₂ W₁: the origin, and two 1 x 1 convolutions in sequence.

    W₁ starts as the identity if there are more output than input channels; otherwise W₂ does.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        init_identity (bool): See :meth:`OREPA.from_layer`. Default: False.
    """

    batch_key, prepare_batch = classmethod(_batch_key), classmethod(_prepare_batch)

    def __init__(self, in_channels: int, out_channels: int, init_identity: bool = False) -> None:
        super().__init__(init_identity)
        inner = min(in_channels, out_channels)
        self.scale = nn.Parameter(torch.empty(2, out_channels))
        self.inner = nn.Parameter(torch.empty(inner, in_channels))
        self.outer = nn.Parameter(torch.empty(out_channels, 1, inner))
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values of the scales, W₁ and W₂."""
        _init_scales(self.scale, (1.0, 0.5), self.init_identity)
        more = self.outer.shape[0] > self.inner.shape[1]
        nn.init.eye_(self.inner if more else self.outer[:, 0])
        _kaiming(self.outer if more else self.inner, a=1.0)

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Set the initial values of the origin branch; see :meth:`OREPA.init_layer`."""
        if not self.init_identity:
            _kaiming(layer.weight, a=1.0)

    def _branch_sum(self, layer: nn.Conv2d, origin: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add up the outputs of all branches; see :meth:`OREPA._branch_sum`."""
        s = self.scale.view(2, -1, 1, 1)
        middle = conv2d(x, self.inner[..., None, None])
        outer = self.outer[:, 0, :, None, None]
        return s[0] * origin + s[1] * _conv_like(layer, middle, outer)

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """Squeeze all branches into one kernel; see :meth:`OREPA.kernel`."""
        return _squeeze_each([self], [weight])[0]

    def _arguments(self, weight: torch.Tensor) -> tuple:
        """Return the arguments of :func:`_squeezed`."""
        return 1, False, None, weight, self.scale, self.inner, self.outer, None, None, None


class OREPAKxK(OREPA):
    """Six branches of a k x k convolution.

    In the order of ``scale``:

    - the origin
    - a 1 x 1 and a k x k convolution in sequence
    - a 1 x 1 convolution before an average
    - a 1 x 1 convolution before a frequency prior
    - a 1 x 1 convolution at the center
    - a depthwise and a 1 x 1 convolution in sequence

    The 1 x 1 kernel before the k x k kernel is Id + A, where A = 0 at the start. Its shape is T x I/g, where
    T = I, or 2 I if g > 4.

    Args:
        in_channels (int): Number I of input channels.
        out_channels (int): Number O of output channels.
        size (int): k. Default: 3.
        groups (int): Groups g. Default: 1.
        init_identity (bool): See :meth:`OREPA.from_layer`. Default: False.
        centre (bool): Whether to include the 1 x 1 convolution at the center. Default: True.
        a (float): Slope of the leaky ReLU that the Kaiming initialization assumes. Default: 0.
    """

    batch_key, prepare_batch = classmethod(_batch_key), classmethod(_prepare_batch)

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
        self.initial_scales = (0.25, 0.5, 0.25, 0.0, *([1.0] if centre else []), 0.5)
        basis = torch.empty(out_channels, len(self.initial_scales) - 3, size**2)
        self.register_buffer('basis', basis, persistent=False)
        self.scale = nn.Parameter(torch.empty(len(self.initial_scales), out_channels))
        self.inner = nn.Parameter(torch.empty(inner, own))
        self.outer = nn.Parameter(torch.empty(out_channels, size**2, inner // groups))
        self.points = nn.Parameter(torch.empty(basis.shape[1], out_channels, own))
        self.depthwise = nn.Parameter(torch.empty(in_channels * EXPANSION, size**2))
        self.pointwise = nn.Parameter(torch.empty(in_channels * EXPANSION, out_channels // groups))
        self.init_weights()

    def _init_basis(self) -> None:
        """Set the fixed kernels of the average, the prior and, if there is one, the center."""
        channels, count, positions = self.basis.shape
        center = torch.eye(positions)[positions // 2].expand(channels, -1)
        prior = frequency_prior(channels, math.isqrt(positions)).flatten(1)
        average = torch.full_like(prior, 1 / positions)
        self.basis.copy_(torch.stack([average, prior, center][:count], 1))

    def init_weights(self) -> None:
        """Set the basis, and the initial values of the scales and of all branches except the origin."""
        self._init_basis()
        _init_scales(self.scale, self.initial_scales, self.init_identity)
        nn.init.zeros_(self.inner)
        _kaiming(self.outer, a=self.a)
        for point in self.points:
            _kaiming(point, a=self.a)
        _kaiming(self.depthwise, a=self.a)
        _kaiming(self.pointwise, a=self.a, fan_in=len(self.pointwise) // self.groups)

    def init_layer(self, layer: nn.Conv2d) -> None:
        """Set the initial values of the origin branch; see :meth:`OREPA.init_layer`."""
        if not self.init_identity:
            _kaiming(layer.weight, a=self.a)

    def _branch_sum(self, layer: nn.Conv2d, origin: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add up the outputs of all branches; see :meth:`OREPA._branch_sum`."""
        outputs, own, k, _ = layer.weight.shape
        first = self.inner + torch.eye(own).to(self.inner).repeat(len(self.inner) // own, 1)
        middle = conv2d(x, first[..., None, None], groups=self.groups)
        last = self.outer.transpose(1, 2).reshape(outputs, -1, k, k)
        maps = [origin, _conv_like(layer, middle, last, self.groups)]
        for point, basis in zip(self.points, self.basis.unbind(1), strict=True):
            mapped = conv2d(x, point[..., None, None], groups=self.groups)
            maps.append(_conv_like(layer, mapped, basis.view(-1, 1, k, k), outputs))
        wide = _conv_like(layer, x, self.depthwise.view(-1, 1, k, k), x.shape[1])
        point = self.pointwise.view(self.groups, -1, outputs // self.groups).transpose(1, 2)
        maps.append(conv2d(wide, point.reshape(outputs, -1, 1, 1), groups=self.groups))
        return sum(s.view(-1, 1, 1) * y for s, y in zip(self.scale, maps, strict=True))

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """Squeeze all branches into one kernel; see :meth:`OREPA.kernel`."""
        return _squeeze_each([self], [weight])[0]

    def _arguments(self, weight: torch.Tensor) -> tuple:
        """Return the arguments of :func:`_squeezed`."""
        branches = self.scale, self.inner, self.outer, self.points, self.depthwise, self.pointwise
        return self.groups, True, self.basis, weight, *branches


class OREPALargeKernel(OREPA):
    """Two branches of a large kernel: the origin, and a composition of 3 x 3 kernels.

    The composition is the paper's linear deep stem (section 3.4), with three kernels for 7 x 7. Each 3 x 3
    kernel has the branches of :class:`OREPAKxK`.

    The authors' code composes the kernels by a convolution without flipping. So training optimizes this
    kernel, not a sequence of 3 x 3 convolutions on the feature map.

    The authors have no branch with a large kernel. Here the layer's own weight is one, so that plain weights
    load. Its scale starts at 0, so the initial kernel is the same as theirs. With ``init_identity``, its
    scale starts at 1 and the scale of the composition at 0.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        size (int): k, odd.
        init_identity (bool): See :meth:`OREPA.from_layer`. Default: False.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, init_identity: bool = False) -> None:
        super().__init__(init_identity)
        channels = [in_channels, *[out_channels] * (size // 2 - 1)]
        self.scale = nn.Parameter(torch.empty(2, out_channels))
        self.origins = nn.ParameterList(torch.empty(out_channels, own, 3, 3) for own in channels)
        self.branches = nn.ModuleList(OREPAKxK(own, out_channels) for own in channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values of the scales and of the 3 x 3 kernels."""
        _init_scales(self.scale, (0.0, 1.0), self.init_identity)
        for origin, branches in zip(self.origins, self.branches, strict=True):
            _kaiming(origin, a=0.0)
            branches.init_weights()

    def _branch_sum(self, layer: nn.Conv2d, origin: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add up the outputs of both branches; see :meth:`OREPA._branch_sum`."""
        composed = None
        for square, weight in zip(self.branches, self.origins, strict=True):
            kernel = _kernel_by_impulses(square, weight)
            composed = kernel if composed is None else _composed(composed, kernel)
        own, deep = self.scale.view(2, -1, 1, 1)
        return own * origin + deep * _conv_like(layer, x, composed)

    def kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """Squeeze all branches into one kernel; see :meth:`OREPA.kernel`."""
        first, *others = _squeeze_each(self.branches, self.origins)
        composed = first.transpose(0, 1)
        for other in others:
            composed = conv2d(composed, other, padding=2)
        own_scale, composed_scale = self.scale.view(2, -1, 1, 1, 1)
        return own_scale * weight + composed_scale * composed.transpose(0, 1)


def _conv_like(layer: nn.Conv2d, x: torch.Tensor, kernel: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Apply a kernel without bias as a convolution does, with its stride and padding.

    timm's Conv2dSame computes its padding from the size of the input.
    """
    conv = with_parameters(layer, stock_class(type(layer)), {'weight': kernel, 'bias': None})
    vars(conv).pop('forward', None)  # the layer may run in the paper's form
    conv.groups = groups
    return conv.forward(x)


def _kernel_by_impulses(square: OREPAKxK, weight: torch.Tensor) -> torch.Tensor:
    """Return the 3 x 3 kernel of a block as its response to an impulse in every input channel."""
    outputs, inputs = weight.shape[:2]
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False).to(weight)
    layer.weight.copy_(weight)
    impulses = torch.zeros(inputs, inputs, 3, 3).to(weight)
    impulses[range(inputs), range(inputs), 1, 1] = 1
    return square._branch_sum(layer, layer(impulses), impulses).flip(2, 3).transpose(0, 1)


def _composed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compose two kernels without flipping, as the authors do, by adding up shifted products."""
    k, n = first.shape[-1], second.shape[-1]
    result = first.new_zeros(len(second), first.shape[1], k + n - 1, k + n - 1)
    for a in range(n):
        for b in range(n):
            rows, columns = slice(n - 1 - a, n - 1 - a + k), slice(n - 1 - b, n - 1 - b + k)
            result[..., rows, columns] += torch.einsum('om,mihw->oihw', second[..., a, b], first)
    return result


def frequency_prior(channels: int, size: int) -> torch.Tensor:
    """Compute the fixed kernels of the frequency prior (section 3.3 of the paper).

    They are cosines of a discrete cosine transform. For output channel o < O / 2, the kernel at row h and
    column w is cos(π (h + ½)(o + 1) / k). For the others it is cos(π (w + ½)(o + 1 − O / 2) / k). The
    authors' code does the same for k = 3.

    Args:
        channels (int): Number O of output channels.
        size (int): k.

    Returns:
        Tensor: Kernels of shape (O, k, k).
    """
    output = torch.arange(channels, dtype=torch.double)
    rows = output < channels / 2
    frequency = torch.where(rows, output + 1, output + 1 - channels / 2)
    waves = torch.cos(math.pi / size * (torch.arange(size, dtype=torch.double) + 0.5) * frequency[:, None])
    prior = torch.where(rows[:, None, None], waves[:, :, None], waves[:, None, :])
    return prior.expand(channels, size, size).float()


@torch.no_grad()
def _kaiming(weight: torch.Tensor, a: float, fan_in: int | None = None) -> None:
    """Initialize by Kaiming's uniform method; ``fan_in`` is the size of a row of the weight by default."""
    fan_in = fan_in or weight[0].numel()
    weight.uniform_(-1, 1).mul_(math.sqrt(6 / ((1 + a**2) * fan_in)))


@torch.no_grad()
def _init_scales(scale: torch.Tensor, values: tuple[float, ...], init_identity: bool) -> None:
    """Set the initial scales; with ``init_identity`` 1 for the origin (the first) and 0 for the others."""
    if init_identity:
        values = 1.0, *[0.0] * (len(values) - 1)
    scale.copy_(torch.tensor(values)[:, None].expand_as(scale))


def _squeeze_each(branches: Iterable[OREPA], weights: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Squeeze the branches of convolutions of any shapes, each with the kernel of its origin branch."""
    parts = [one._arguments(weight) for one, weight in zip(branches, weights, strict=True)]
    kinds = [(1, groups, identity) for groups, identity, *_ in parts]
    return _squeeze(kinds, *(tensor for _, _, *tensors in parts for tensor in tensors))


def _squeeze(kinds: Sequence[_Kind], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Squeeze the branches of convolutions.

    Args:
        kinds (Sequence[tuple[int, int, bool]]): Number n of convolutions of each shape, their groups, and
            whether their inner kernels include the identity.
        *tensors (Tensor | None): For each shape n of each tensor of :func:`_squeezed`.

    Returns:
        tuple[Tensor, ...]: Their kernels.
    """
    if functorch_level() is not None:  # torch.func takes no function of this kind
        return _kernels(kinds, *tensors)
    return _Squeeze.apply(kinds, *tensors)


def _kernels(kinds: Sequence[_Kind], *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Compute :func:`_squeeze` with automatic differentiation."""
    kernels = []
    for (n, *_), joined in zip(kinds, _joined(kinds, tensors), strict=True):
        kernels.extend(_split(_squeezed(*joined), n))
    return tuple(kernels)


def _joined(kinds: Sequence[_Kind], tensors: Sequence[torch.Tensor | None]) -> Iterator[tuple]:
    """Join equal convolutions to one, whose groups are those of all of them: the arguments of _squeezed."""
    start = 0
    for n, groups, identity in kinds:
        columns = []
        for dim in _GROUPED:
            column = tensors[start : start + n]
            columns.append(column[0] if n == 1 or column[0] is None else torch.cat(column, dim))
            start += n
        yield n * groups, identity, *columns


def _split(joined: torch.Tensor | None, n: int, dim: int = 0) -> Sequence[torch.Tensor | None]:
    """Split a tensor of n joined convolutions."""
    return [joined] * n if n == 1 or joined is None else joined.chunk(n, dim)


def _squeezed(
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
) -> torch.Tensor:
    """Squeeze the branches of one convolution into its kernel."""
    outputs, own = weight.shape[:2]
    first, second = scale[:2].view(2, outputs, 1, 1).unbind()
    scaled = (outer * second).view(groups, -1, outer.shape[-1])
    rows = torch.bmm(scaled, _inner_kernels(inner, groups, own, identity))
    if basis is None:
        return rows.view_as(weight).addcmul_(weight, first.unsqueeze(3))
    rows = rows.view(outputs, -1, own)
    rows.baddbmm_((basis * scale[2:-1].T.unsqueeze(2)).mT, points.transpose(0, 1))
    kernel = (weight.flatten(2) * first).add_(rows.mT)
    del rows
    columns = torch.bmm(_by_input(depthwise).mT, _by_input(pointwise)).view(
        groups, own, -1, outputs // groups
    )
    columns = columns.mul_(scale[-1].view(groups, 1, 1, -1)).permute(0, 3, 1, 2)
    kernel.view(columns.shape).add_(columns)
    return kernel.view_as(weight)


def _by_input(kernels: torch.Tensor) -> torch.Tensor:
    """View kernels of :data:`EXPANSION` per input channel by input channel, as one matrix each."""
    return kernels.view(-1, EXPANSION, kernels.shape[-1])


def _inner_kernels(inner: torch.Tensor, groups: int, own: int, identity: bool) -> torch.Tensor:
    """Return the inner kernels of every group (g, t, i), plus the identity if it is a part of them."""
    if identity:  # repeated if there are twice as many channels
        inner = inner.view(-1, own, own) + torch.eye(own, dtype=inner.dtype, device=inner.device)
    return inner.view(groups, -1, own)


class _Squeeze(torch.autograd.Function):
    """Squeezed kernel of :class:`OREPAKxK`, and of :class:`OREPA1x1`, which has only the first two branches.

    The kernel is linear in every branch, so its gradients need only the parameters and the gradient of the
    kernel. Nothing else is saved, while automatic differentiation saves the kernel of every branch.

    For O outputs, I inputs of a group, and kernels of k positions, intermediate kernels have the layouts
    ``rows`` (O, k, I) and ``columns`` (inputs of all groups, k, outputs of a group), so that the products are
    products of large matrices. Each is one call of torch's matrix product, as ``einsum`` takes several times
    as long to launch.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, kinds: Sequence[_Kind], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.kinds = kinds
        ctx.save_for_backward(*tensors)
        return _kernels(kinds, *tensors)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kinds, tensors = ctx.kinds, ctx.saved_tensors
        if torch.is_grad_enabled():  # it may be differentiated again
            # A view of each, as convolutions may share a tensor.
            tensors = [tensor if tensor is None else tensor.view_as(tensor) for tensor in tensors]
            given = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
            kernels = _kernels(kinds, *tensors)
            options = {'create_graph': True, 'allow_unused': True}
            found = dict(zip(given, torch.autograd.grad(kernels, given, gradients, **options), strict=True))
            return None, *map(found.get, tensors)
        result, start = [None], 0
        with without_autocast(gradients[0].device):
            for (n, *_), joined in zip(kinds, _joined(kinds, tensors), strict=True):
                own = gradients[start : start + n]
                start += n
                found = None, *_gradients(own[0] if n == 1 else torch.cat(own), *joined)
                for tensor, dim in zip(found, _GROUPED, strict=True):
                    result.extend(_split(tensor, n, dim))
        return (*result,)


def _gradients(
    gradient: torch.Tensor,
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
) -> list[torch.Tensor | None]:
    """Compute the gradients of all tensors from that of the squeezed kernel."""
    outputs, own = weight.shape[:2]
    first, second = scale[:2].view(2, outputs, 1, 1).unbind()
    gradient = gradient.contiguous()
    d = gradient.view(outputs, own, -1)
    rows = d.mT.contiguous()
    by_group = rows.view(groups, -1, own)
    d_outer = torch.bmm(by_group, _inner_kernels(inner, groups, own, identity).mT).view_as(outer)
    d_scale = [_dot(d, weight), _dot(d_outer, outer)]
    d_inner = torch.bmm((outer * second).view(groups, -1, outer.shape[-1]).mT, by_group).view_as(inner)
    d_points = d_depthwise = d_pointwise = None
    if basis is not None:
        by_point = torch.bmm(basis, rows).transpose(0, 1)
        d_scale.append((by_point * points).sum(-1))
        d_points = torch.mul(by_point, scale[2:-1].unsqueeze(2), out=torch.empty_like(points))
        columns = (
            d.view(groups, -1, own, d.shape[2]).permute(0, 2, 3, 1).reshape(-1, d.shape[2], outputs // groups)
        )
        d_pointwise = torch.bmm(_by_input(depthwise), columns).view(groups, -1, outputs // groups)
        last = scale[-1].view(groups, 1, -1)
        by_group = pointwise.view_as(d_pointwise)
        d_scale.append((d_pointwise * by_group).sum(1).view(1, -1))
        d_depthwise = torch.bmm(_by_input(by_group * last), columns.mT).view_as(depthwise)
        d_pointwise = d_pointwise.mul_(last).view_as(pointwise)
    d_weight = gradient * first.unsqueeze(3)
    return [d_weight, torch.cat(d_scale), d_inner, d_outer.mul_(second), d_points, d_depthwise, d_pointwise]


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the dot product of every output channel of two tensors (O, ...), as a row."""
    return torch.bmm(first.reshape(len(first), 1, -1), second.reshape(len(second), -1, 1)).view(1, -1)
