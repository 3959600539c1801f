"""Place the constants that replace attention in the layers around it. Needs torch only.

The constants v of a gate, y = x · v, are multiplied into the output channels of the layer that x comes from,
or into the input channels of all layers that read y. A scale per channel passes the operations in between if
they are linear and treat every channel alike; ReLU, LeakyReLU and max pooling it passes if it is positive. A
BatchNorm that reads y takes the constants in its weight and mean:
γ (x v - μ) / σ + β = γ v (x - μ / v) / σ + β.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from ..core.differences import tensors
from ..core.scaling import output_channels, scaled
from .gates import Gate
from .trace import Call, Trace

_POOLS = {f'{kind}_pool{n}d' for kind in ('avg', 'adaptive_avg', 'max', 'adaptive_max') for n in (1, 2, 3)}
#: Functions of a map that keep its shape, and that every scale per channel passes.
_ALIKE = {
    *('contiguous', 'clone', 'detach', 'to', 'float', 'alias'),
    *('dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'feature_dropout'),
}
#: Those that only a positive scale passes.
_RELU = {'relu', 'relu_', 'leaky_relu', 'leaky_relu_'}
_MAX = {name for name in _POOLS if 'max' in name}
#: Functions that move elements, or average them.
_MOVING = {'flatten', 'view', 'reshape', 'mean', 'squeeze', 'unsqueeze', 'permute', 'transpose'}
_CONVS = {f'conv{kind}{n}d' for kind in ('', '_transpose') for n in (1, 2, 3)}
_LAYERS = {*_CONVS, 'linear', 'batch_norm'}
#: Layers whose output channels can be scaled.
_SCALED = {*_LAYERS, 'layer_norm', 'group_norm', 'instance_norm'}


@dataclasses.dataclass
class Placement:
    """Layers that take the constants of a gate.

    Attributes:
        backward (bool): Whether they are scaled in their output channels; otherwise in their input channels.
        channels (dict[str, Tensor]): Name of a layer -> the number of the constant for each of its channels.
        positive (bool): Whether the constants must not be negative.
    """

    backward: bool
    channels: dict[str, torch.Tensor]
    positive: bool

    def __str__(self) -> str:
        return f'{", ".join(self.channels)} {"before" if self.backward else "after"} it'


class _NoPlacement(Exception):  # noqa: N818, it is not an error
    """Why constants cannot be placed; the text continues "it"."""


def find_placements(
    model: nn.Module, gates: list[Gate], run: Callable[[], object]
) -> tuple[dict[str, Placement], dict[str, str]]:
    """Find the layers that can take the constants of gates.

    Args:
        model (nn.Module): A network in eval mode whose gates are switches with constants.
        gates (list[Gate]): The gates.
        run (callable): Runs the network once and returns its outputs.

    Returns:
        tuple[dict[str, Placement], dict[str, str]]: Placement of each gate, and for gates without one the
        reason, by name.
    """
    trace = Trace(model)
    with torch.no_grad(), trace:
        outputs = run()
        with torch._C.DisableTorchFunction():
            returned = {trace.value(tensor) for _, tensor in tensors('', outputs)}
    search = _Search(model, trace, returned)
    placements, reasons = {}, {}
    for gate in gates:
        try:
            placements[gate.name] = _checked(search.backward(gate), gate)
        except _NoPlacement as before:
            try:
                placements[gate.name] = _checked(search.forward(gate), gate)
            except _NoPlacement as after:
                reasons[gate.name] = f'before it, {before}; after it, {after}'
    return placements, reasons


def _checked(placement: Placement, gate: Gate) -> Placement:
    if placement.positive and (gate.switch.v < 0).any():
        raise _NoPlacement('negative constants do not pass an activation or maximum')
    return placement


class _Search:
    """Search for placements in one run of a network.

    Args:
        model (nn.Module): The network.
        trace (Trace): The run.
        returned (set[int]): Values that the network returns, so that they must stay as they are.
    """

    def __init__(self, model: nn.Module, trace: Trace, returned: set[int]) -> None:
        self.trace, self.returned = trace, returned
        self.readers = trace.readers()
        self.writers = {value: call for call in trace.calls if call.module is None for value in call.outputs}
        self.names = {module: name for name, module in model.named_modules()}
        self.owners = Counter(id(p) for m in self.names for p in m._parameters.values() if p is not None)
        self.layer_calls: dict[nn.Module, list[Call]] = defaultdict(list)
        for call in trace.calls:
            if layer := self._layer(call):
                self.layer_calls[layer].append(call)

    def _layer(self, call: Call) -> nn.Module | None:
        """Return the module whose weight a function reads."""
        if call.name not in _SCALED or call.outer is None:
            return None
        module, weight = call.outer.module, call.kwargs.get('weight')
        read = [weight, *(arg for arg in call.args[1:] if isinstance(arg, torch.Tensor))]
        own = module._parameters.get('weight')
        return module if own is not None and any(tensor is own for tensor in read) else None

    def _check_layer(self, layer: nn.Module, used: list[Call]) -> None:
        name = self.names[layer]
        if self.owners[id(layer.weight)] > 1:
            raise _NoPlacement(f'{name} shares its weight')
        if set(self.layer_calls[layer]) - set(used):
            raise _NoPlacement(f'{name} runs in other places too')

    def _switch_calls(self, gate: Gate) -> list[Call]:
        return [call for call in self.trace.calls if call.module is gate.switch]

    def backward(self, gate: Gate) -> Placement:
        """Return the placement in the layer before a gate."""
        used: dict[nn.Module, list[Call]] = defaultdict(list)
        positive = False
        for call in self._switch_calls(gate):
            value = call.inputs[0]
            while True:
                if len(self.readers[value]) > 1 or value in self.returned:
                    raise _NoPlacement('its input is read by something else')
                writer = self.writers.get(value)
                if writer is None:
                    raise _NoPlacement('there is no layer')
                if layer := self._layer(writer):
                    used[layer].append(writer)
                    break
                if writer.name not in {*_ALIKE, *_RELU, *_POOLS}:
                    raise _NoPlacement(f'{_described(writer)} does not pass a scale')
                positive |= writer.name in {*_RELU, *_MAX}
                value = writer.inputs[0]
        channels = {}
        for layer, calls in used.items():
            self._check_layer(layer, calls)
            count = output_channels(layer)
            if count != len(gate.switch.v):
                raise _NoPlacement(f'{self.names[layer]} has other channels')
            channels[self.names[layer]] = torch.arange(count)
        return Placement(True, channels, positive)

    def forward(self, gate: Gate) -> Placement:
        """Return the placement in the layers after a gate."""
        used: dict[nn.Module, list[Call]] = defaultdict(list)
        channels: dict[nn.Module, torch.Tensor] = {}
        positive = False
        for call in self._switch_calls(gate):
            (value,) = call.outputs
            shape = self.trace.shapes[value]
            size = [1] * len(shape)
            size[gate.switch.dim] = -1
            index = torch.arange(shape[gate.switch.dim]).view(size).expand(shape)
            pending = [(value, index)]
            while pending:
                value, index = pending.pop()
                if not self.readers[value] or value in self.returned:
                    raise _NoPlacement('the network returns its output')
                for reader in self.readers[value]:
                    if reader.inputs[0] != value or reader.inputs.count(value) > 1:
                        raise _NoPlacement(f'{_described(reader)} reads its output')
                    if (layer := self._layer(reader)) and reader.name in _LAYERS:
                        found = _channels_of(layer, reader, index)
                        if not torch.equal(channels.setdefault(layer, found), found):
                            raise _NoPlacement(f'{self.names[layer]} reads it in two ways')
                        used[layer].append(reader)
                    else:
                        positive |= reader.name in {*_RELU, *_MAX}
                        pending.append((reader.outputs[0], self._passed(reader, index)))
        for layer, calls in used.items():
            self._check_layer(layer, calls)
        return Placement(False, {self.names[layer]: found for layer, found in channels.items()}, positive)

    def _passed(self, call: Call, index: torch.Tensor) -> torch.Tensor:
        """Return which constant belongs to each element after a function, from those before it."""
        shape = self.trace.shapes[call.outputs[0]]
        if call.name in {*_ALIKE, *_RELU}:
            return index
        if (call.name in _POOLS and len(call.outputs) == 1) or _pads_positions(call, index.dim()):
            first = index[(slice(None), slice(None), *[slice(1)] * (index.dim() - 2))]
            if torch.equal(first.expand_as(index), index):
                return first.expand(shape)
        if call.name in _MOVING:
            # Averages of different constants differ in their squares.
            moved, squares = (
                call.function(power.double(), *call.args[1:], **call.kwargs) for power in (index, index**2)
            )
            if torch.equal(moved.round() ** 2, squares.round()):
                return moved.round().long()
        raise _NoPlacement(f'{_described(call)} does not pass a scale')


def _pads_positions(call: Call, dims: int) -> bool:
    """Return whether a function pads a map with zeros or its own values."""
    if call.name != 'pad':
        return False
    names = dict(zip(('input', 'pad', 'mode', 'value'), call.args, strict=False)) | call.kwargs
    return len(names['pad']) <= 2 * (dims - 2) and not names.get('value')


def _described(call: Call) -> str:
    where = call.name if call.outer is None else f'{call.name} in {call.outer.name or "the network"}'
    return call.name if call.module is not None else where


def _channels_of(layer: nn.Module, call: Call, index: torch.Tensor) -> torch.Tensor:
    """Return which constant belongs to each input channel of a layer."""
    dim = index.dim() - 1 if call.name == 'linear' else 1
    lines = index.movedim(dim, 0).flatten(1)
    if not torch.equal(lines[:, :1].expand_as(lines), lines):
        raise _NoPlacement(f'{_described(call)} reads several channels as one')
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        raise _NoPlacement(f'{_described(call)} normalizes the scale away')
    return lines[:, 0].clone()


@torch.no_grad()
def placed(layer: nn.Module, placement: Placement, name: str, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer with constants multiplied into them, by name in the layer.

    Args:
        layer (nn.Module): The layer.
        placement (Placement): A placement in it.
        name (str): Name of the layer in the network.
        v (Tensor): Constants of shape (C,).
    """
    v = v[placement.channels[name].to(v.device)].to(layer.weight.device)
    if placement.backward:
        return scaled(layer, v)
    if isinstance(layer, _BatchNorm):
        return _before_batch_norm(layer, v)
    weight = layer.weight
    if isinstance(layer, _ConvTransposeNd):
        return {'weight': (weight * v.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)}
    groups = len(v) // weight.shape[1]
    by_group = weight.unflatten(0, (groups, -1)) * v.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return {'weight': by_group.flatten(0, 1).to(weight.dtype)}


def _before_batch_norm(norm: _BatchNorm, v: torch.Tensor) -> dict[str, torch.Tensor]:
    zero = v == 0
    constant = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    return {
        'weight': (norm.weight * v).to(norm.weight.dtype),
        'bias': torch.where(zero, constant, norm.bias).to(norm.bias.dtype),
        'running_mean': torch.where(zero, 0, norm.running_mean / v).to(norm.running_mean.dtype),
    }
