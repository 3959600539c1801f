"""Remove attention from a trained network: find it, replace it by constants, and fold these.

By the paper's Stripe Observation, the attention values of trained networks hardly depend on the image. How
far that holds is measured for every module, on unlabeled inputs. Needs torch only.
"""

import copy
import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..core.class_surgery import restore_classes
from ..core.differences import BOUNDS, coarsest
from ..core.foldable import find_foldable
from ..errors import InputError, one_line, shortened
from .distill import Runs, Track, change, distill, is_decision, last_shared_map, loss, only_training
from .gates import Gate, find_gates, replaced, switched, without_gates
from .placement import Placement, find_placements, placed
from .statistics import ChannelStatistics

#: Share of the decisions, or of the variance of other outputs, that may change by default.
TOLERANCE = 0.02
_CONSTANTS_PER_OUTPUT = 10
#: Images to measure the effect of a single module on. They decide on the order only.
_EFFECT_IMAGES = 200
#: Adam's largest learning rate for the constants, and for all weights.
_RATE, _WEIGHTS_RATE = 1e-2, 2e-4


@dataclasses.dataclass
class AttentionModule:
    """One attention module, and what happened to it.

    Attributes:
        kind (str): Class of the module.
        values (ChannelStatistics): Statistics of its attention values over images.
        effect (float, optional): Loss of the network's outputs if only this module is replaced by constants;
            None if it cannot be.
        placement (str, optional): The layers that its constants went into; None if it stays.
        reason (str, optional): Why it stays; None if it was removed.
    """

    kind: str
    values: ChannelStatistics
    effect: float | None = None
    placement: str | None = None
    reason: str | None = None


@dataclasses.dataclass
class AttentionReport:
    """Result of :func:`fold_attention`.

    Attributes:
        modules (dict[str, AttentionModule]): The attention found, by name.
        other (dict[str, str]): Attention that has more than one value per image and channel -> why it stays.
        images (int): Number of inputs.
        held_out (int): Number of those of them that were held out.
        measure (str): What ``change`` is: the share of changed decisions, the share of the outputs'
            variance, or the share that the caller's function says.
        start (float): Change of the held-out outputs before distillation.
        change (float): Change of the held-out outputs in the end.
        all_removed (float): Change before distillation if all modules with a placement had been removed.
    """

    modules: dict[str, AttentionModule]
    other: dict[str, str]
    images: int
    held_out: int
    measure: str
    start: float
    change: float
    all_removed: float

    @property
    def removed(self) -> list[str]:
        """Names of the modules that were removed."""
        return [name for name, module in self.modules.items() if module.reason is None]

    def staying(self) -> dict[str, list[str]]:
        """Return why attention stays: reason -> names."""
        names: dict[str, list[str]] = defaultdict(list)
        for name, reason in [*((n, m.reason) for n, m in self.modules.items()), *self.other.items()]:
            if reason is not None:
                names[reason].append(name)
        return names

    def summary(self) -> str:
        """Return a line that says how much the outputs changed."""
        return (
            f'{self.measure} on {self.held_out} held-out inputs: {self.change:.2%} ({self.start:.2%} before '
            f'distillation; {self.all_removed:.2%} with all that can be placed)'
        )

    def __str__(self) -> str:
        lines = [f'{len(self.removed)} of {len(self.modules)} attention modules removed']
        lines += [
            f'  {name} ({self.modules[name].kind}): constants in {self.modules[name].placement}'
            for name in self.removed
        ]
        lines += [f'  {", ".join(names)}: stays: {reason}' for reason, names in self.staying().items()]
        return '\n'.join([*lines, self.summary()])


def call_model(model: nn.Module, batch: object) -> object:
    """Run a network on a batch.

    Args:
        model (nn.Module): The network.
        batch (Any): A tuple or list of its arguments, a dict of its keyword arguments, or its only argument.

    Returns:
        Any: Its outputs.
    """
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def fold_attention(
    model: nn.Module,
    batches: Iterable,
    *,
    forward: Callable[[nn.Module, Any], Any] = call_model,
    tolerance: float = TOLERANCE,
    epochs: int = 5,
    weights: bool = False,
    maps: Collection[str] | None = None,
    agreement: Callable[[Any, Any], float] | None = None,
    accept: Callable[[nn.Module], bool] | None = None,
    capture: bool = True,
    track: Track = lambda items, description: items,
) -> AttentionReport:
    """Remove attention from a trained network, in place.

    Every module or multiplication is found that computes x · g, with one value per image and channel that
    depends on the input. Those whose replacement by constants changes the outputs least are replaced, as many
    as the tolerance allows. The constants start at the mean weighted by energy, v = Σ x² g / Σ x². They are
    trained to reproduce the outputs of the network itself, and multiplied into the layers around.

    Args:
        model (nn.Module): A network in eval mode, without re-parameterization.
        batches (Iterable): Unlabeled inputs, a few hundred at least. They are kept in memory. Every tenth
            batch is held out; of a single batch, the first tenth.
        forward (callable): Runs the network on a batch. Default: tensors are passed as they are, tuples as
            arguments, dicts as keyword arguments.
        tolerance (float): Share of the decisions that may change on the held-out inputs, after distillation;
            for other outputs the squared difference relative to their variance. Default: 0.02.
            ``float('inf')`` removes all that can be placed.
        epochs (int): Epochs of distillation; 0 for none. Default: 5.
        weights (bool): Then distill all weights for as many epochs, for networks in which everything must go.
            This needs many inputs, and memory for a copy of the network. Default: False.
        maps (Collection[str], optional): Names of modules whose feature maps are distilled, besides the
            outputs, if these are not one decision per input. Default: the last map that all outputs share.
        agreement (callable, optional): ``(teacher's outputs, student's outputs) -> share in [0, 1]`` that
            agrees after decoding, such as boxes or texts, in place of the measures above.
        accept (callable, optional): Decides in place of the tolerance. It gets the network with constants in
            place of some modules and returns whether that is good enough, by its accuracy for instance.
        capture (bool): Also remove attention in the code of larger modules. These become a
            ``torch.fx.GraphModule`` of the same layers. Default: True.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        AttentionReport: What was removed, what stays and why, and the measurements.

    Raises:
        InputError: If the network has no such attention or is in training mode; if there are no batches, only
            one input, too few inputs for the constants to distill, NaN, or outputs without tensors. The
            network is then unchanged.
    """
    folding = Folding(model, batches, forward, maps, agreement, capture, track)
    return folding.run(tolerance, accept, epochs, weights)


class Folding:
    """The steps of :func:`fold_attention`, which has the same arguments.

    Attributes:
        box (nn.ModuleList): A list with the network.
        gates (list[Gate]): The attention found.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable,
        forward: Callable[[nn.Module, Any], Any],
        maps: Collection[str] | None,
        agreement: Callable[[Any, Any], float] | None,
        capture: bool,
        track: Track,
    ) -> None:
        if any(module.training for module in model.modules()):
            raise InputError('the network is in training mode; call model.eval() first')
        if names := list(find_foldable(model).reparameterizations()):
            raise InputError(
                f'the network has re-parameterization ({shortened(names)}); call mmasr.fold first'
            )
        self.model, self.agreement, self.track = model, agreement, track
        self.device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
        self.training, self.held_out, self.images = _split(batches)
        self.box = nn.ModuleList([model])
        self.runs = Runs(self.box, lambda box, batch: forward(box[0], _to(batch, self.device)))
        with torch.no_grad():
            outputs, _ = self.runs.outputs(self.held_out[0])
        self.decides = is_decision(outputs)
        if not self.decides:
            shared = last_shared_map(self.runs, self.held_out[0])
            names = shared if maps is None else [f'0.{name}' for name in maps]
            self.runs = dataclasses.replace(self.runs, maps=names)
        self.gates, self.other = find_gates(model, self._run_once, capture)
        if not self.gates:
            stays = ''.join(f'; {name}: {reason}' for name, reason in self.other.items())
            raise InputError(
                f'{type(model).__name__} has no attention with one value per image and channel{stays}'
            )

    def _run_once(self) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return self.runs.outputs(self.held_out[0])[0]

    @torch.no_grad()
    def run(
        self, tolerance: float, accept: Callable[[nn.Module], bool] | None, epochs: int, weights: bool
    ) -> AttentionReport:
        """Fold what the tolerance allows, or what is accepted.

        Args:
            tolerance (float): See :func:`fold_attention`.
            accept (callable, optional): See :func:`fold_attention`.
            epochs (int): See :func:`fold_attention`.
            weights (bool): See :func:`fold_attention`.

        Returns:
            AttentionReport: What was removed.

        Raises:
            InputError: See :func:`fold_attention`.
        """
        values, constants = self.means()
        modules = {gate.name: AttentionModule(gate.kind, values[gate.name]) for gate in self.gates}
        placements, reasons = self.place(constants)
        for name, reason in reasons.items():
            modules[name].reason = reason
        gates = [gate for gate in self.gates if gate.name in placements]
        if not gates:
            name, reason = next(iter(reasons.items()))
            raise InputError(f'the constants of no attention module can be placed; {name}: {reason}')
        with switched(self.box, gates):
            effects = self.effects(gates, constants)
            gates.sort(key=lambda gate: effects[gate.name])
            all_removed = self.change(gates, constants)
            for gate in gates:
                modules[gate.name].effect = effects[gate.name]
            chosen, distilled = self.choose(gates, constants, tolerance, accept, epochs)
            for gate in gates[len(chosen) :]:
                share = f'{tolerance:.2%} of the {"decisions" if self.decides else "outputs"}'
                problem = 'is not accepted' if accept else f'changes more than {share}'
                modules[gate.name].reason = f'removing it too {problem}'
            start, end = self.change(chosen, constants), self.change(chosen, distilled)
            constants = distilled
        if chosen:
            changed = self._fold(chosen, placements, constants, epochs if weights else 0)
            end = end if changed is None else changed
        for gate in chosen:
            modules[gate.name].placement = str(placements[gate.name])
        measure = (
            'changed share of the outputs'
            if self.agreement
            else ('changed decisions' if self.decides else 'squared difference relative to the variance')
        )
        held_out = sum(map(_count, self.held_out))
        return AttentionReport(modules, self.other, self.images, held_out, measure, start, end, all_removed)

    def use(self, gates: Collection[Gate], constants: dict[str, torch.Tensor]) -> None:
        """Let some gates compute constants, and all others their attention.

        Args:
            gates (Collection[Gate]): These gates.
            constants (dict[str, Tensor]): Name of a gate -> its constants, (C,).
        """
        for gate in self.gates:
            gate.switch.v = constants[gate.name] if gate in gates else None

    def means(self) -> tuple[dict[str, ChannelStatistics], dict[str, torch.Tensor]]:
        """Return statistics of all attention values, and their means weighted by energy."""
        totals = {gate.name: _Totals() for gate in self.gates}
        for gate in self.gates:
            gate.switch.observe = functools.partial(totals[gate.name].add, dim=gate.switch.dim)
        try:
            with switched(self.box, self.gates):
                for batch in self.track(self.training, 'observing attention'):
                    self.runs.outputs(batch)
        finally:
            for gate in self.gates:
                gate.switch.observe = None
        values = {name: total.values for name, total in totals.items()}
        return values, {name: total.mean() for name, total in totals.items()}

    def place(self, constants: dict[str, torch.Tensor]) -> tuple[dict[str, Placement], dict[str, str]]:
        """Find layers for the constants of all gates.

        Args:
            constants (dict[str, Tensor]): Name of a gate -> its constants, (C,).

        Returns:
            tuple[dict[str, Placement], dict[str, str]]: Placements that reproduce the constants; and for
            other gates, why they have none.
        """
        gates, reasons = list(self.gates), {}
        while gates:
            self.use(gates, constants)
            with switched(self.box, gates, constant=True):
                placements, refused = find_placements(self.box[0], gates, self._run_once)
            if not refused:
                break
            # The attention that stays may read what the others were to change.
            reasons.update(refused)
            gates = [gate for gate in gates if gate.name in placements]
        for gate in gates:
            self.use([gate], constants)
            with switched(self.box, [gate]):
                expected, _ = self.runs.outputs(self.held_out[0])
            try:
                with _folded(self.box, [gate], placements, constants):
                    found, _ = self.runs.outputs(self.held_out[0])
            except TypeError as error:  # nn.Identity takes the feature map only, as a positional argument
                reasons[gate.name] = one_line('the network does not run without it', error)
                continue
            if not _agree(self.model, expected, found):
                reasons[gate.name] = f'its constants in {placements[gate.name]} change more than its output'
        return {gate.name: placements[gate.name] for gate in gates if gate.name not in reasons}, reasons

    def _check_enough(self, constants: int) -> None:
        outputs = sum(tensor.numel() for tensor in self._teacher(self.held_out[0]).values())
        images = sum(map(_count, self.training))
        # They start close to their values and are trained for few steps, so this many can be told apart.
        if _CONSTANTS_PER_OUTPUT * images * outputs < constants * _count(self.held_out[0]):
            raise InputError(
                f'{images} inputs are too few to distill {constants:,} constants; pass some hundred, or '
                '`epochs` 0'
            )

    def _teacher(self, batch: object) -> dict[str, torch.Tensor]:
        """Return the outputs of the network with its attention."""
        self.use((), {})
        return self.runs.outputs(batch)[0]

    def effects(self, gates: list[Gate], constants: dict[str, torch.Tensor]) -> dict[str, float]:
        """Measure how much each gate matters, while the network is switched.

        Args:
            gates (list[Gate]): The gates.
            constants (dict[str, Tensor]): Name of a gate -> its constants, (C,).

        Returns:
            dict[str, float]: Name of a gate -> loss of the outputs if it alone has constants.
        """
        batches = [*self.held_out, *self.training]
        enough = itertools.takewhile(
            lambda images: images < _EFFECT_IMAGES, itertools.accumulate(map(_count, batches))
        )
        batches = batches[: len(list(enough)) + 1]
        effects = dict.fromkeys((gate.name for gate in gates), 0.0)
        for batch in self.track(batches, 'removing one module at a time'):
            expected = self._teacher(batch)
            for gate in gates:
                self.use([gate], constants)
                effects[gate.name] += loss(expected, self.runs.outputs(batch)[0]).item() / len(batches)
        return effects

    def choose(
        self,
        gates: list[Gate],
        constants: dict[str, torch.Tensor],
        tolerance: float,
        accept: Callable[[nn.Module], bool] | None,
        epochs: int,
    ) -> tuple[list[Gate], dict[str, torch.Tensor]]:
        """Choose the gates to remove, while the network is switched.

        Args:
            gates (list[Gate]): The gates, those that matter least first.
            constants (dict[str, Tensor]): Name of a gate -> its constants, (C,).
            tolerance (float): See :func:`fold_attention`.
            accept (callable, optional): See :func:`fold_attention`.
            epochs (int): See :func:`fold_attention`.

        Returns:
            tuple[list[Gate], dict[str, Tensor]]: As many of the first gates as can go; and all constants,
            those of these gates distilled.
        """
        distilled: dict[int, dict[str, torch.Tensor]] = {0: constants}

        def is_acceptable(count: int) -> bool:
            trained = self.distilled(gates[:count], constants, epochs) if epochs else {}
            distilled[count] = {**constants, **trained}
            if accept is None:
                return self.change(gates[:count], distilled[count]) <= tolerance
            self.use(gates[:count], distilled[count])
            return accept(self.box[0])

        count = largest_count(len(gates), is_acceptable)
        return gates[:count], distilled[count]

    def distilled(
        self, gates: list[Gate], constants: dict[str, torch.Tensor], epochs: int
    ) -> dict[str, torch.Tensor]:
        """Distill constants, while the network is switched.

        The logarithms of their ratios to the start are trained, which keeps their signs.

        Args:
            gates (list[Gate]): The gates with constants.
            constants (dict[str, Tensor]): Name of a gate -> its constants at the start, (C,).
            epochs (int): Number of epochs.

        Returns:
            dict[str, Tensor]: Name of one of the gates -> its constants.
        """
        self._check_enough(sum(len(constants[gate.name]) for gate in gates))
        ratios = {gate.name: torch.zeros_like(constants[gate.name], requires_grad=True) for gate in gates}

        def current() -> dict[str, torch.Tensor]:
            return {name: constants[name] * ratio.exp() for name, ratio in ratios.items()}

        def student(batch: object) -> dict[str, torch.Tensor]:
            self.use(gates, current())
            return self.runs.outputs(batch)[0]

        with only_training(self.model):
            data = self.training, self.held_out, epochs, self.track
            distill(self._teacher, student, list(ratios.values()), _RATE, *data)
        return {name: v.detach() for name, v in current().items()}

    def change(self, gates: Collection[Gate], constants: dict[str, torch.Tensor]) -> float:
        """Measure the change of the held-out outputs, while the network is switched.

        Args:
            gates (Collection[Gate]): Gates with constants.
            constants (dict[str, Tensor]): Name of a gate -> its constants, (C,).

        Returns:
            float: The change, as in :class:`AttentionReport`.
        """

        def teacher(batch: object) -> tuple[dict[str, torch.Tensor], Any]:
            self.use((), {})
            return self.runs.outputs(batch)

        def student(batch: object) -> tuple[dict[str, torch.Tensor], Any]:
            self.use(gates, constants)
            return self.runs.outputs(batch)

        return self._changed(teacher, student)

    def _changed(self, teacher: Callable, student: Callable) -> float:
        """Return the change of the held-out outputs between two networks."""
        total = images = 0
        for batch in self.held_out:
            (expected, result), (found, other) = teacher(batch), student(batch)
            changed = 1 - float(self.agreement(result, other)) if self.agreement else change(expected, found)
            total, images = total + changed * _count(batch), images + _count(batch)
        return total / images

    def _fold(
        self,
        gates: list[Gate],
        placements: dict[str, Placement],
        constants: dict[str, torch.Tensor],
        epochs: int,
    ) -> float | None:
        """Fold the constants for good, unless the outputs changed, and distill all weights for some epochs.

        Returns:
            float | None: Change of the held-out outputs; None without epochs.
        """
        self.use(gates, constants)
        with switched(self.box, gates):
            expected, _ = self.runs.outputs(self.held_out[0])
        teacher = dataclasses.replace(self.runs, model=copy.deepcopy(self.box)) if epochs else None
        with _folded(self.box, gates, placements, constants) as keep:
            found, _ = self.runs.outputs(self.held_out[0])
            if not _agree(self.model, expected, found):
                raise InputError('the network computes something else after folding; it was left as it was')
            if teacher:
                parameters = [p for p in self.box.parameters() if p.requires_grad]
                data = self.training, self.held_out, epochs, self.track
                distill(
                    lambda batch: teacher.outputs(batch)[0],
                    lambda batch: self.runs.outputs(batch)[0],
                    *(parameters, _WEIGHTS_RATE, *data),
                )
            keep()
        restore_classes(self.box)
        return self._changed(teacher.outputs, self.runs.outputs) if teacher else None


class _Totals:
    """Sums over images of the values g of one gate, and of the energy of its input."""

    def __init__(self) -> None:
        self.values: ChannelStatistics | None = None
        self.energy = self.weighted = 0

    def add(self, x: torch.Tensor, g: torch.Tensor, dim: int) -> None:
        """Add a map x and its values g of shape (N, C)."""
        energy = x.movedim(dim, 1).flatten(2).double().square().sum(2)
        self.energy = self.energy + energy.sum(0)
        self.weighted = self.weighted + (energy * g).sum(0)
        values = ChannelStatistics.of(g.cpu())
        self.values = values if self.values is None else self.values.combined(values)

    def mean(self) -> torch.Tensor:
        """Return the constant that changes the maps least, Σ x² g / Σ x²; the mean of g where x is 0."""
        plain = self.values.mean.to(self.energy.device)
        return torch.where(self.energy > 0, self.weighted / self.energy.clamp(min=1e-300), plain).float()


@contextmanager
def _folded(
    box: nn.ModuleList,
    gates: list[Gate],
    placements: dict[str, Placement],
    constants: dict[str, torch.Tensor],
) -> Iterator[Callable[[], None]]:
    """While active, constants are folded and their gates are gone; yields a function that keeps it so."""
    layers = {name: box[0].get_submodule(name) for gate in gates for name in placements[gate.name].channels}
    tensors_of = {
        name: dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        for name, layer in layers.items()
    }
    before = [(t, t.detach().clone()) for named in tensors_of.values() for t in named.values()]
    kept = []
    try:
        for gate in gates:
            placement = placements[gate.name]
            for name in placement.channels:
                for part, tensor in placed(layers[name], placement, name, constants[gate.name]).items():
                    tensors_of[name][part].data.copy_(tensor)
        with replaced(box, without_gates(box[0], gates)) as keep:
            yield lambda: kept.append(keep())
    finally:
        for tensor, value in [] if kept else before:
            tensor.data.copy_(value)


def _agree(model: nn.Module, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> bool:
    """Return whether outputs differ by no more than the roundings of a network's parameters."""
    bound = BOUNDS[coarsest(parameter.dtype for parameter in model.parameters())]
    return all(
        (found[n] - t).abs().max() <= bound * t.abs().max().clamp(min=1e-6) for n, t in expected.items()
    )


def _to(batch: object, device: torch.device | None) -> Any:
    """Move the tensors of a batch to a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return type(batch)((key, _to(value, device)) for key, value in batch.items())
    if type(batch) in (list, tuple):
        return type(batch)(_to(value, device) for value in batch)
    return batch


def _count(batch: object) -> int:
    """Return the number of images in a batch: the length of its first tensor or list of tensors.

    Images of different sizes come in lists. A batch that is a list itself contains arguments.
    """
    return next(_lengths(batch if isinstance(batch, list | tuple) else [batch]), 1)


def _lengths(values: Iterable) -> Iterator[int]:
    for value in values:
        is_tensor = isinstance(value, torch.Tensor) and value.dim()
        is_list = isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
        if is_tensor or is_list:
            yield len(value)
        elif isinstance(value, dict | tuple):
            yield from _lengths(value.values() if isinstance(value, dict) else value)


def _split(batches: Iterable) -> tuple[list, list, int]:
    """Return batches to train on, every tenth to hold out, and the number of images."""
    batches = list(batches)
    if not batches:
        raise InputError('there are no batches; pass some hundred unlabeled inputs')
    images = sum(map(_count, batches))
    if images < 2:
        raise InputError('one image is not enough to tell what depends on the image; use a few hundred')
    if len(batches) == 1:
        batches = _halves(batches[0])
    held_out = batches[::10]
    return [batch for number, batch in enumerate(batches) if number % 10], held_out, images


def _halves(batch: object) -> list:
    """Return a tenth of a batch, but at least one image, and the rest."""
    count = _count(batch)
    first = max(1, count // 10)

    def part(value: object, images: slice) -> Any:
        if isinstance(value, dict):
            return {key: part(item, images) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(part(item, images) for item in value)
        is_tensor = isinstance(value, torch.Tensor) and value.dim()
        return value[images] if (is_tensor or isinstance(value, list)) and len(value) == count else value

    batch = tuple(batch) if isinstance(batch, list) else batch
    return [part(batch, slice(first)), part(batch, slice(first, None))]


def largest_count(count: int, is_acceptable: Callable[[int], bool]) -> int:
    """Find the largest acceptable number by bisection.

    Args:
        count (int): The largest number to consider.
        is_acceptable (callable): Whether a number is acceptable; all below an acceptable one should be.

    Returns:
        int: The number; 0 if none is acceptable.
    """
    if is_acceptable(count):
        return count
    accepted, too_many = 0, count
    while too_many - accepted > 1:
        middle = (accepted + too_many) // 2
        accepted, too_many = (middle, too_many) if is_acceptable(middle) else (accepted, middle)
    return accepted
