"""Compare a folded network with the trained one, layer by layer and tensor by tensor. Needs torch only.

Three things must hold:

1. Each folded layer computes what the trained one does *in the paper's form*: the output of the stock layer
   times κ(ψ), or the sum of the outputs of all branches. This form shares no code with folding. Both sides
   are computed in double precision, on the inputs that the layer receives in the network and on random ones,
   which reach every channel. Each channel is compared relative to its own largest value, so that a small one
   counts as much as the others.
2. The tensors of each folded layer are those that were compared in 1, rounded to their own type.
3. All other tensors are the trained ones, bit for bit.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..errors import InputError, shortened
from .bias_fusion import fuse_visible_biases
from .class_surgery import eval_copy
from .differences import BOUNDS, check_differences, coarsest, compare, tensors
from .example_inputs import copied, is_real, random_like
from .foldable import Foldable, find_foldable, fold_all
from .host import Host, write_parameters
from .merge import MERGE_BOUND, branch_ends, foreign_blocks, is_foreign
from .reparameterization import ParameterReparameterization
from .scaling import channel_dim, inner_activation, scaled

#: Largest difference of a layer's outputs in double precision, relative to the largest value of the channel.
#: Only the scale is computed in float32, which rounds each factor of it by 6e-8.
_LAYER_BOUND = 1e-6
#: Largest error of a sum that folding computes, in eps of the type it is computed in, relative to the largest
#: parameter of the channel. In float32 up to 5 were measured for kernels of small networks; half precision
#: rounds each term, but adds them up in float32. A product is rounded once.
_SUM_ERROR = {torch.float64: 64, torch.float32: 64, torch.float16: 8, torch.bfloat16: 8}
_SCALES = (1, 10, 100)  # of random inputs; larger ones reach channels that an activation silences
_SAMPLES, _SIDE = 2, 32  # of a batch of feature maps that are compared


@dataclasses.dataclass
class LayerDifference:
    """Largest difference of a folded layer from the trained one.

    Attributes:
        name (str): Name of the layer, or of its tensor, in the network.
        channel (int): Output channel with the largest difference.
        relative (float): The difference, relative to the largest value of that channel.
    """

    name: str
    channel: int
    relative: float


class TrainedLayers:
    """Copies of the layers that folding changes, to verify the folded network with.

    Args:
        model (nn.Module): The trained network.
        foldable (Foldable): Everything that is about to be folded in it.
        weights (Mapping[str, Tensor]): Its state dict, perhaps in the types of a checkpoint; of a copy, as
            folding may change tensors in place.
    """

    def __init__(self, model: nn.Module, foldable: Foldable, weights: Mapping[str, torch.Tensor]) -> None:
        asrs = {plugin.norm: plugin.asr for plugin in foldable.plugins.values()}
        merged = set(foldable.branches.values())
        changed = {*merged, *foldable.hosts.values(), *asrs}
        modules = list(model.named_modules(remove_duplicate=False))
        blocks = [name for name, module in modules if module in merged]
        #: Name -> layer; a layer in several places has several names.
        self.layers = {
            name: _TrainedLayer(*copy.deepcopy((layer, asrs.get(layer))), layer in merged)
            for name, layer in modules
            # What is inside a module with branches is compared with it.
            if layer in changed and not _is_inside(name, blocks)
        }
        #: Name of a convolution whose bias went into the BatchNorms after it -> names of the BatchNorms.
        self.fused: dict[str, list[str]] = {}
        #: The trained tensors by their names in the network, which a state dict may change.
        self.trained = {name: weights[key] for name, key in _keys(model).items()}
        plugins = {plugin.asr for plugin in foldable.plugins.values()}
        self._changed = [*self.layers, *(name for name, module in modules if module in plugins)]

    @functools.cached_property
    @torch.no_grad()
    def _folded(self) -> dict[str, torch.Tensor]:
        """State of all folded layers in double precision, before biases are fused."""
        return {
            _join(name, key): tensor
            for name, layer in self.layers.items()
            for key, tensor in layer.folded().state_dict().items()
        }

    @functools.cached_property
    def references(self) -> dict[str, torch.Tensor]:
        """State of all folded layers in double precision, by the names in the network."""
        gone = [f'{conv}.bias' for conv in self.fused]
        found = {name: tensor for name, tensor in self._folded.items() if name not in gone}
        for norm, bias in self._shifts().items():
            mean = f'{norm}.running_mean'
            found[mean] = found.get(mean, self.trained[mean].double()) - bias
        return found

    def _shifts(self) -> dict[str, torch.Tensor]:
        """Return the bias, (C,), that each BatchNorm took from the convolution before it."""
        return {norm: self._folded[f'{conv}.bias'] for conv, norms in self.fused.items() for norm in norms}

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor of a folded layer: that of the trained tensor, or of the branches."""
        if name in self.trained:
            return self.trained[name].dtype
        layer = next(layer for layer in self.layers if _is_inside(name, [layer]))
        return coarsest(tensor.dtype for key, tensor in self.trained.items() if _is_inside(key, [layer]))

    def stored(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Convert the state dict of the folded network to the types of the trained one.

        Args:
            model (nn.Module): The folded network.

        Returns:
            dict[str, Tensor]: The tensors of folded layers, rounded; and all others as they were trained.
        """
        state = model.state_dict()
        for name, key in _keys(model).items():
            if name in self.references:
                state[key] = state[key].to(self.dtype(name))
            elif name in self.trained:
                trained = self.trained[name]
                if state[key].dtype != trained.dtype:  # a network in float32 does not hold float64 exactly
                    state[key] = trained.clone()
        return state

    def check_tensors(
        self,
        model: nn.Module,
        weights: Mapping[str, torch.Tensor] | None = None,
        computed: torch.dtype | None = None,
    ) -> LayerDifference | None:
        """Account for every tensor of the folded network: it is a folded layer's, or as it was trained.

        Args:
            model (nn.Module): The folded network.
            weights (Mapping[str, Tensor], optional): Its state dict in the types of a checkpoint. Default: in
                its own types.
            computed (torch.dtype, optional): Type in which folding computed them, before they were rounded.
                Default: their own types.

        Returns:
            LayerDifference | None: The largest difference of a tensor of a folded layer; None if there is
            none.

        Raises:
            InputError: If a tensor is missing, has no origin, or differs; the message names it.
        """
        weights = model.state_dict() if weights is None else weights
        found = {name: weights[key] for name, key in _keys(model).items()}
        expected = [name for name in self.trained if not _is_inside(name, self._changed)]
        if missing := [name for name in (*self.references, *expected) if name not in found]:
            raise InputError(f'the folded network lacks {shortened(missing)}')
        differences = []
        for name, tensor in found.items():
            if name in self.references:
                differences.append(self._compare_tensor(name, tensor, computed or tensor.dtype))
            elif name not in self.trained or not _is_same(tensor, self.trained[name]):
                raise InputError(
                    f'{name} of the folded network is not the trained tensor, and not the result of folding'
                )
        return max(differences, key=lambda difference: difference.relative, default=None)

    def _compare_tensor(self, name: str, tensor: torch.Tensor, computed: torch.dtype) -> LayerDifference:
        reference, trained, dtype = self.references[name], self.trained.get(name), self.dtype(name)
        if tensor.shape != reference.shape or tensor.dtype != dtype:
            found, expected = (f'{tuple(t.shape)}, {t.dtype}' for t in (tensor, reference.to(dtype)))
            raise InputError(f'{name} of the folded network has the shape and type {found}, not {expected}')
        rows = reference.double().abs().reshape(len(reference) if reference.dim() else 1, -1)
        distance = (tensor.double() - reference).abs().reshape(rows.shape)
        is_sum = self._is_sum(name)
        # The terms of a merged bias may nearly cancel.
        largest = rows.max() if is_sum and rows.shape[1] == 1 else rows.amax(1, keepdim=True)
        allowed = torch.zeros_like(rows)
        if trained is None or trained.shape != reference.shape or not trained.double().equal(reference):
            stored = torch.finfo(dtype)
            allowed += (stored.eps / 2 + torch.finfo(computed).eps) * rows
            allowed += is_sum * _SUM_ERROR[computed] * torch.finfo(computed).eps * largest
            allowed += stored.tiny * stored.eps  # the step between its smallest numbers
        relative = torch.where(largest > 0, distance / largest, distance).nan_to_num(torch.inf).amax(1)
        wrong = ~(distance <= allowed).all(1)
        channel = int((relative * wrong if wrong.any() else relative).nan_to_num(torch.inf).argmax())
        if wrong.any():
            raise InputError(
                f'{name} of the folded network differs from the trained layer in channel {channel} by '
                f'{relative[channel]:.1e} of its largest value, more than the rounding of {dtype}'
            )
        return LayerDifference(name, channel, relative[channel].item())

    def _is_sum(self, name: str) -> bool:
        """Return whether a tensor is a sum of several, and not just a product of one with a scale."""
        sums = [layer for layer, trained in self.layers.items() if trained.is_sum]
        return _is_inside(name, [*sums, *itertools.chain(*self.fused.values())])

    @contextmanager
    def compared(self, model: nn.Module) -> Iterator[dict[str, LayerDifference]]:
        """While active, compare every folded layer with the trained one whenever it runs.

        The folded layer runs with the parameters in double precision that :meth:`check_tensors` compares its
        own with.

        Args:
            model (nn.Module): The folded network, in eval mode.

        Yields:
            dict[str, LayerDifference]: Name of a layer that ran -> its largest difference; filled at the end.
        """
        shifts, measured = self._shifts(), {}
        for name, layer in self.layers.items():
            references = {
                key: self.references[_join(name, key)]
                for key in model.get_submodule(name).state_dict()
                if _join(name, key) in self.references
            }
            measured[name] = _Measured(name, layer, references, name in self.fused, shifts.get(name))
        handles = [
            model.get_submodule(name).register_forward_hook(layer.compare, with_kwargs=True)
            for name, layer in measured.items()
        ]
        found: dict[str, LayerDifference] = {}
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
        found.update(
            {name: layer.difference() for name, layer in measured.items() if layer.largest is not None}
        )

    def check_layers(self, differences: Mapping[str, LayerDifference]) -> LayerDifference | None:
        """Check the differences that :meth:`compared` has found.

        Args:
            differences (Mapping[str, LayerDifference]): By the name of the layer.

        Returns:
            LayerDifference | None: The largest one; None if no layer ran.

        Raises:
            InputError: If one is too large; the message names the layer and the channel.
        """
        for name, found in differences.items():
            if not found.relative <= (bound := self.layers[name].bound):
                raise InputError(
                    f'the folded layer {name} differs from the trained one in channel {found.channel} by '
                    f'{found.relative:.1e} of its largest value, more than {bound:.0e}'
                )
        return max(differences.values(), key=lambda found: found.relative, default=None)


class _Measured:
    """Largest values and differences of the channels of a layer, over all inputs.

    Args:
        name (str): Name of the layer.
        trained (_TrainedLayer): The trained layer.
        references (dict[str, Tensor]): State of the folded layer in double precision.
        lost_bias (bool): Whether the BatchNorm after the layer took its bias.
        shift (Tensor, optional): Bias, (C,), of the convolution before, which this layer took.
    """

    def __init__(
        self,
        name: str,
        trained: '_TrainedLayer',
        references: dict[str, torch.Tensor],
        lost_bias: bool,
        shift: torch.Tensor | None,
    ) -> None:
        self.name, self.trained, self.references = name, trained, references
        self.lost_bias, self.shift = lost_bias, shift
        self.largest = self.distance = None

    @torch.no_grad()
    @torch.random.fork_rng([])
    def compare(self, folded: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """Compare the folded layer with the trained one on its inputs, and on random ones; a forward hook."""
        layer, trained = eval_copy(folded).double(), _in_double(self.trained.layer)
        layer.load_state_dict(self.references)
        if is_foreign(self.trained.layer):
            self._compare_block(layer, trained, args, kwargs)
            return
        inputs = [self.trained.cropped(arg) for arg in args]
        is_first = self.largest is None
        self._compare(layer, trained, inputs, kwargs)
        for scale in _SCALES if is_first else ():
            if scale == 1 or not self.largest.all():
                self._compare(layer, trained, [random_like(arg, scale) for arg in inputs], kwargs)

    def _compare_block(self, layer: nn.Module, trained: nn.Module, args: tuple, kwargs: dict) -> None:
        """Compare a block of another library, which may have any inputs and outputs, on what it receives."""
        use_paper_form(trained)
        try:
            pair = [_all_outputs(module, args, kwargs, torch.float64) for module in (layer, trained)]
        except (RuntimeError, ValueError):  # it computes in a type of its own
            pair = [_all_outputs(module.float(), args, kwargs, torch.float32) for module in (layer, trained)]
        actual, reference = pair
        if [tensor.shape for tensor in actual] != [tensor.shape for tensor in reference]:
            raise InputError(f'{self.name}: the folded block has outputs of other shapes')
        self.largest = torch.stack([tensor.abs().max() for tensor in reference])
        self.distance = torch.stack([(a - r).abs().max() for a, r in zip(actual, reference, strict=True)])

    def _compare(self, layer: nn.Module, trained: nn.Module, args: list, kwargs: dict) -> None:
        torch.default_generator.manual_seed(0)  # a layer that draws noise draws the same on both sides
        actual = _tensor(layer.forward(*args, **kwargs))
        torch.default_generator.manual_seed(0)
        reference = self._reference(trained, args, kwargs)
        if reference.shape != actual.shape:
            shapes = f'{tuple(actual.shape)}, not {tuple(reference.shape)}'
            raise InputError(f'{self.name}: the folded layer has an output of {shapes}')
        own = channel_dim(layer, actual, *args)
        others = [dim for dim in range(reference.dim()) if dim != own]
        largest = reference.abs().amax(others)
        distance = (actual - reference).abs().amax(others)
        if self.largest is not None:
            largest, distance = largest.maximum(self.largest), distance.maximum(self.distance)
        self.largest, self.distance = largest, distance

    def _reference(self, trained: nn.Module, args: list, kwargs: dict) -> torch.Tensor:
        """Run the trained layer, with the bias that the folded one has from another layer, or gave away."""
        if self.shift is not None:
            args = [args[0] + self.shift.view(-1, *[1] * (args[0].dim() - 2)), *args[1:]]
        output = self.trained.run(trained, args, kwargs)
        if self.lost_bias:
            zeros = [torch.zeros_like(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
            output = output - self.trained.run(trained, zeros, kwargs)
        return output

    def difference(self) -> LayerDifference:
        """Return the largest difference, relative to the largest value of its channel."""
        relative = torch.where(self.largest > 0, self.distance / self.largest, self.distance)
        relative = relative.nan_to_num(torch.inf, torch.inf)
        channel = int(relative.argmax())
        return LayerDifference(self.name, channel, relative[channel].item())


def _all_outputs(module: nn.Module, args: tuple, kwargs: dict, dtype: torch.dtype) -> list[torch.Tensor]:
    """Run a module on a copy of its arguments in a type; return all output tensors that are not empty."""
    torch.default_generator.manual_seed(0)
    args, kwargs = tree_map(lambda v: v.to(dtype) if is_real(v) else v, copied((args, kwargs)))
    output = module.forward(*args, **kwargs)
    return [t.clone() if is_real(t) else t.double() for _, t in tensors('output', output) if t.numel()]


@dataclasses.dataclass
class _TrainedLayer:
    """A trained layer, an ASR that is a plugin after it, and whether its branches are merged."""

    layer: nn.Module
    asr: ParameterReparameterization | None
    merges: bool

    @property
    def bound(self) -> float:
        """Largest difference of its outputs; half precision rounds each factor of a scale by eps / 2."""
        if is_foreign(self.layer):
            return MERGE_BOUND
        types = coarsest(parameter.dtype for parameter in self.layer.parameters())
        return max(_LAYER_BOUND, 4 * torch.finfo(types).eps)

    @property
    def is_sum(self) -> bool:
        """Return whether its folded parameters are sums."""
        is_host = isinstance(self.layer, Host)
        return self.merges or (is_host and self.layer.reparameterization().verified_in_double)

    def cropped(self, value: object) -> object:
        """Return an input in double precision, a feature map cropped: a part shows as much as the whole."""
        if not is_real(value):
            return value
        is_map = value.dim() == 4 and not isinstance(self.layer, nn.Linear | nn.LayerNorm)
        if is_map:  # the others may take (N, H, W, C)
            value = value[:_SAMPLES, :, :_SIDE, :_SIDE]
        return value.double()

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """Return the layer that it folds to, in double precision."""
        layer = _in_double(self.layer)
        layer = fold_all(
            layer, () if self.merges else [*foreign_blocks(layer), *find_foldable(layer).branches]
        )
        if self.asr is not None:
            write_parameters(layer, scaled(layer, self.asr.scale()))
        return layer

    def run(self, layer: nn.Module, args: list, kwargs: dict) -> torch.Tensor:
        """Run the layer and the ASR after it in the paper's form.

        Args:
            layer (nn.Module): A copy of it in double precision.
            args (list): Its arguments.
            kwargs (dict): Its keyword arguments.

        Returns:
            Tensor: Its output.
        """
        output = paper_form(layer, args, kwargs)
        if self.asr is not None:
            output = self.asr.paper_form(layer, output, *args)
        return output


def _in_double(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer in double precision and eval mode."""
    layer = eval_copy(layer)
    kept = {
        part
        for module in layer.modules()
        if isinstance(module, ParameterReparameterization) and not module.verified_in_double
        for part in module.modules()
    }
    for module in layer.modules():
        if module not in kept:
            module._apply(lambda t: t.double() if t.is_floating_point() else t, recurse=False)
    return layer


def paper_form(layer: nn.Module, args: list, kwargs: dict) -> torch.Tensor:
    """Run a trained layer in the paper's form, on feature maps.

    Args:
        layer (nn.Module): A host, or a module with branches, in eval mode. It always runs in this form
            afterwards.
        args (list): Its arguments.
        kwargs (dict): Its keyword arguments.

    Returns:
        Tensor: Its output.
    """
    use_paper_form(layer)
    return _tensor(layer(*args, **kwargs))


def use_paper_form(layer: nn.Module) -> None:
    """Make all hosts in a layer run in the paper's form from now on."""
    for module in layer.modules():
        if isinstance(module, Host):
            module.forward = functools.partial(_host_in_paper_form, module)


def _host_in_paper_form(host: Host, *args, **kwargs) -> object:
    part = host.reparameterization()
    ends = branch_ends(host)
    if ends:  # an activation may follow the sum, so the ASR scales every branch
        handles = [
            end.register_forward_hook(lambda end, given, output: part.paper_form(end, output, *given))
            for end in ends.values()
        ]
    elif (activation := inner_activation(host)) is not None:
        handles = [activation.register_forward_pre_hook(lambda _, given: part.paper_form(host, *given))]
    else:
        output = host.stock.forward(host, *args, **kwargs)
        if isinstance(output, tuple):  # of MultiheadAttention, with the attention weights
            return part.paper_form(host, output[0], *args), *output[1:]
        return part.paper_form(host, output, *args)
    try:
        return host.stock.forward(host, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


@torch.no_grad()
@torch.random.fork_rng([])
def verify_fold(model: nn.Module, inputs: Any, stay: Collection[str] = ()) -> None:
    """Fold a copy of a network, and verify it: every layer, every tensor, and the outputs on some inputs.

    Args:
        model (nn.Module): The network. It stays as it is.
        inputs (Any): What it runs on, in eval mode: one argument, a tuple of arguments, or a dict of keyword
            arguments.
        stay (Collection[str]): Names of modules whose branches are not merged. Default: none.

    Raises:
        InputError: If the network cannot be folded; a folded layer does not run on these inputs; or anything
            differs.
    """
    network = eval_copy(model)
    found = find_foldable(network, stay)
    branches = {name: module for name, module in found.branches.items() if name not in stay}
    layers = TrainedLayers(network, dataclasses.replace(found, branches=branches), model.state_dict())
    expected = run_on(network, inputs)
    network = fold_all(network, stay)
    biased = found.without_stock_bias(stay)
    layers.fused = fuse_visible_biases(network, biased, lambda network: run_on(network, inputs))
    layers.check_tensors(network)
    with layers.compared(network) as differences:
        actual = run_on(network, inputs)
    layers.check_layers(differences)
    if idle := [name for name in layers.layers if name not in differences]:
        raise InputError(f'the inputs do not reach {shortened(idle)}, so folding it is not verified')
    bound = BOUNDS[coarsest(layers.dtype(name) for name in layers.references)]
    check_differences(compare(expected, actual), bound)


def run_on(network: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    """Run a network on inputs as :func:`mmasr.fold` takes them.

    Args:
        network (nn.Module): A network in eval mode.
        inputs (Any): See :func:`verify_fold`.

    Returns:
        dict[str, Tensor]: Its output tensors by name.

    Raises:
        InputError: If there are none.
    """
    torch.default_generator.manual_seed(0)  # for a network that draws noise
    inputs = copy.deepcopy(inputs)  # which the network may change
    if isinstance(inputs, Mapping):
        output = network(**inputs)
    else:
        output = network(*inputs) if isinstance(inputs, tuple) else network(inputs)
    found = dict(tensors('output', output))
    if not found:
        raise InputError(f'the network returned no tensors to compare, but a {type(output).__name__}')
    return {name: tensor.clone() for name, tensor in found.items()}


def _keys(model: nn.Module) -> dict[str, str]:
    """Return the names of a network's parameters and buffers -> their keys in its state dict.

    They differ where a network changes them, as MMPretrain's wrapper of timm's does.
    """
    state = {
        key: tensor
        for key, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, torch.Tensor)
    }
    keys = {id(tensor): key for key, tensor in state.items()}
    named = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    found = {
        name: name if state.get(name) is tensor else keys[id(tensor)]  # tied weights have several names
        for name, tensor in named
        if id(tensor) in keys
    }
    return found | {key: key for key in state.keys() - found.values()}


def _join(name: str, key: str) -> str:
    return f'{name}.{key}'.lstrip('.')


def _is_inside(name: str, modules: Collection[str]) -> bool:
    """Return whether a name is that of a tensor or module inside one of some modules."""
    return any(name.startswith(f'{module}.') if module else name for module in modules)


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal bit for bit."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)))
