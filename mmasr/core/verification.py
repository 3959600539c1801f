"""Compare folded layers with the trained ones, in the paper's form. Needs torch only.

The reference does not use the code that folds. A layer with an ASR is the stock layer, whose output is
multiplied by κ(ψ); a layer with branches adds up the outputs of its branches. Both sides are computed in
double precision, on the inputs that a layer receives in the network and on random ones, which reach every
channel. Each channel is compared relative to its own largest value, so a small one counts as much as others.
"""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import InputError
from .fold import Foldable
from .host import Host
from .merge import branch_ends
from .reparameterization import ParameterReparameterization, Reparameterization
from .scaling import channel_dim

#: Largest difference of a layer, relative to the largest value of the channel, by the type of its weights. A
#: folded parameter is rounded once or twice, which half precision does by up to an eps. float32 is also what
#: kernels are merged in, and where γ and β nearly cancel their rounding shows more: up to 2e-5 was measured.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_SIDE = 32  # pixels of a feature map that are compared


@dataclasses.dataclass
class LayerDifference:
    """Largest difference of a folded layer from the trained one.

    Attributes:
        name (str): Name of the layer in the network.
        channel (int): Output channel with the largest difference.
        relative (float): The difference, relative to the largest value of that channel.
    """

    name: str
    channel: int
    relative: float


class TrainedLayers:
    """Copies of the layers that folding changes, to compare them with the folded ones.

    Args:
        model (nn.Module): The trained network.
        foldable (Foldable): Everything that is about to be folded in it.
        means (dict[str, Tensor]): Name of a layer -> values, (C,), that are multiplied into it as well.
    """

    def __init__(self, model: nn.Module, foldable: Foldable, means: dict[str, torch.Tensor]) -> None:
        names = {module: name for name, module in model.named_modules()}
        norms = {names[plugin.norm]: plugin.asr for plugin in foldable.plugins.values()}
        self.layers = {
            name: _TrainedLayer(*copy.deepcopy((layer, norms.get(name), means.get(name))))
            for name, layer in model.named_modules()
            if name in {*foldable.branches, *foldable.hosts, *norms, *means}
        }

    @contextmanager
    def compared(self, model: nn.Module) -> Iterator[dict[str, LayerDifference]]:
        """While active, compare every folded layer with the trained one whenever it runs.

        Args:
            model (nn.Module): The folded network.

        Yields:
            dict[str, LayerDifference]: Name of a layer that ran -> its largest difference so far.
        """
        measured: dict[str, _Measured] = {}
        handles = []
        for name, layer in self.layers.items():
            try:
                folded = model.get_submodule(name)
            except AttributeError:
                # A block of another library has replaced its branches; it is compared as a whole.
                if not any(name.startswith(f'{block}.') for block in self.layers):
                    raise
                continue
            measured[name] = _Measured(name, layer)
            handles.append(folded.register_forward_hook(measured[name].compare, with_kwargs=True))
        found: dict[str, LayerDifference] = {}
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
        found.update(
            {name: layer.difference() for name, layer in measured.items() if layer.largest is not None}
        )


class _Measured:
    """Largest values and differences of the channels of a layer, over all inputs."""

    def __init__(self, name: str, trained: '_TrainedLayer') -> None:
        self.name, self.trained = name, trained
        self.largest = self.distance = None

    @torch.no_grad()
    @torch.random.fork_rng([])
    def compare(self, folded: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """Compare the folded layer with the trained one on its inputs, and on random ones; a forward hook."""
        inputs = [self.trained.cropped(arg) for arg in args]
        for given in (inputs, [_random_like(arg) for arg in inputs]):
            torch.default_generator.manual_seed(0)  # a layer that draws noise draws the same on both sides
            reference = self.trained.run(folded, given, kwargs)
            torch.default_generator.manual_seed(0)
            layer = copy.deepcopy(folded).double().eval()
            actual = _tensor(layer.forward(*given, **kwargs))
            if reference.shape != actual.shape:
                shapes = f'{tuple(actual.shape)}, not {tuple(reference.shape)}'
                raise InputError(f'{self.name}: the folded layer has an output of {shapes}')
            own = channel_dim(layer, actual, *given)
            others = [dim for dim in range(reference.dim()) if dim != own]
            largest = reference.abs().amax(others)
            distance = (actual - reference).abs().amax(others)
            if self.largest is not None:
                largest, distance = largest.maximum(self.largest), distance.maximum(self.distance)
            self.largest, self.distance = largest, distance

    def difference(self) -> LayerDifference:
        """Return the largest difference, relative to the largest value of its channel."""
        relative = torch.where(self.largest > 0, self.distance / self.largest, self.distance)
        relative = relative.nan_to_num(torch.inf, torch.inf)
        channel = int(relative.argmax())
        return LayerDifference(self.name, channel, relative[channel].item())


def _random_like(value: object) -> object:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator(value.device).manual_seed(0)
    return torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)


@dataclasses.dataclass
class _TrainedLayer:
    """A trained layer, and scales that come after it: an ASR that is a plugin, and the mean of attention."""

    layer: nn.Module
    asr: ParameterReparameterization | None
    mean: torch.Tensor | None

    def cropped(self, value: object) -> object:
        """Return an input in double precision, a feature map cropped: a part shows as much as the whole."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        is_map = value.dim() == 4 and not isinstance(self.layer, nn.Linear | nn.LayerNorm)
        if is_map:  # the others may take (N, H, W, C)
            value = value[..., :_SIDE, :_SIDE]
        return value.double()

    def run(self, folded: nn.Module, args: list, kwargs: dict) -> torch.Tensor:
        """Run the layer in the paper's form and in double precision.

        Args:
            folded (nn.Module): The folded layer. Where a bias went from a merged convolution into the
                normalization that follows, both differ by that constant: the comparison of the outputs of the
                network is for it.
            args (list): Its arguments.
            kwargs (dict): Its keyword arguments.

        Returns:
            Tensor: Its output.
        """
        layer = copy.deepcopy(self.layer).double().eval()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.copy_(folded.running_mean)
        output = paper_form(layer, args, kwargs)
        is_new = isinstance(layer, Reparameterization) and not layer.stock_bias
        if is_new and getattr(folded, 'bias', None) is None:
            zeros = [torch.zeros_like(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
            output = output - paper_form(layer, zeros, kwargs)
        if self.asr is not None:
            output = copy.deepcopy(self.asr).double().eval().paper_form(layer, output, *args)
        if self.mean is not None:
            output = output * self.mean.double().view(-1, *[1] * (output.dim() - 2))
        return output


def paper_form(layer: nn.Module, args: list, kwargs: dict) -> torch.Tensor:
    """Run a trained layer in the paper's form, on feature maps.

    Args:
        layer (nn.Module): A host, or a module with branches, in eval mode.
        args (list): Its arguments.
        kwargs (dict): Its keyword arguments.

    Returns:
        Tensor: Its output.
    """
    if not isinstance(layer, Host):
        return _tensor(layer(*args, **kwargs))
    part = layer.reparameterization()
    ends = branch_ends(layer)
    if not ends:
        return part.paper_form(layer, _tensor(layer.stock.forward(layer, *args, **kwargs)), *args)
    # An activation may follow the sum, so the ASR scales every branch.
    handles = [
        end.register_forward_hook(lambda end, given, output: part.paper_form(end, output, *given))
        for end in ends.values()
    ]
    try:
        return _tensor(layer.stock.forward(layer, *args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def check_layers(
    differences: dict[str, LayerDifference], dtypes: dict[str, torch.dtype]
) -> LayerDifference | None:
    """Check the differences of all layers.

    Args:
        differences (dict[str, LayerDifference]): By the name of the layer.
        dtypes (dict[str, torch.dtype]): Types of the weights in the file, by name.

    Returns:
        LayerDifference | None: The largest one; None if no layer ran.

    Raises:
        InputError: If one is too large; the message names the layer and the channel.
    """
    for name, found in differences.items():
        if not found.relative <= (bound := _bound(name, dtypes)):
            raise InputError(
                f'the folded layer {name} differs from the trained one in channel {found.channel} by '
                f'{found.relative:.1e} of its largest value, more than {bound:.0e}'
            )
    return max(differences.values(), key=lambda found: found.relative, default=None)


def _bound(layer: str, dtypes: dict[str, torch.dtype]) -> float:
    types = [dtype for name, dtype in dtypes.items() if name.startswith(f'{layer}.') and dtype in BOUNDS]
    return max((BOUNDS[dtype] for dtype in types), default=BOUNDS[torch.float32])
