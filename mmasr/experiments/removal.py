"""Compare ways to remove attention from a trained network: the accuracy of each, and the latency gained."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.fold import fold
from ..deploy.export import write_graph
from ..deploy.exported import named_outputs
from ..deploy.remove_attention import calibration_and_test_data, outputs_of_batch
from ..errors import InputError
from ..openmmlab.evaluation import Track, evaluate, main_metric, untracked
from ..plots import GRAY, METRICS, RED, TEXT, panels
from ..stripes.fold_attention import Folding, fold_attention
from ..stripes.gates import Gate, switched
from ..timing import ratio_quantiles, time_in_turns
from ..untrusted import open_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Numbers of images that the latency is measured with.
BATCHES = (1, 8)
#: Labels of the curves.
CURVES = {'means': 'mean values', 'constants': 'distilled constants'}
_ALL = float('inf')


@dataclasses.dataclass
class Variant:
    """A network with constants in place of some of its attention.

    Attributes:
        removed (int): Number of modules that were removed.
        value (float): Main metric on the test data.
        change (float): Change of the outputs on held-out images, as in
            :class:`mmasr.stripes.fold_attention.AttentionReport`.
    """

    removed: int
    value: float
    change: float


@dataclasses.dataclass
class Comparison:
    """Result of :func:`compare_removals`.

    Attributes:
        checkpoint (str): The checkpoint.
        metric (str): Name of the main metric.
        modules (int): Number of attention modules.
        variants (dict[str, Variant]): ``trained``; with everything removed: ``means``, ``energy`` (means
            weighted by energy), ``constants`` (distilled) and ``weights`` (all weights distilled); and
            ``default``, what the default tolerance removes.
        curves (dict[str, list[Variant]]): For ``means`` and ``constants``, one variant for each number of
            removed modules; empty if that was not asked for.
        latency (dict[str, list[float]]): Seconds without attention as shares of those with it, such as
            ``torch, batch 8``: 10 %, 50 % and 90 % quantiles over the rounds.
    """

    checkpoint: str
    metric: str
    modules: int
    variants: dict[str, Variant]
    curves: dict[str, list[Variant]]
    latency: dict[str, list[float]]


def compare_removals(
    checkpoint: str | Path,
    images: int = 1000,
    epochs: int = 5,
    curves: bool = False,
    rounds: int = 30,
    track: Track = untracked,
) -> Comparison:
    """Remove the attention of a checkpoint in several ways, and evaluate each on the test data.

    Args:
        checkpoint (str | Path): A trained checkpoint with its config.
        images (int): Number of training images, without labels. Default: 1000.
        epochs (int): Epochs of distillation. Default: 5.
        curves (bool): Also evaluate every number of removed modules. Default: False.
        rounds (int): Rounds of timing; 0 for none. Default: 30.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        Comparison: The measurements.

    Raises:
        InputError: If the checkpoint or its data cannot be used, or has no attention to remove.
    """
    network = open_checkpoint(checkpoint).network(calibrates=True)
    config = network.config
    model = fold(network.model)
    model.eval()
    batches, loader = calibration_and_test_data(config, images)
    batches = list(batches)

    def values(student: nn.Module) -> dict[str, float]:
        return evaluate(student, loader, config.test_evaluator, track)

    trained = values(model)
    metric = main_metric(config, trained)
    measured = _Measured(model, batches, lambda student: values(student).get(metric, 0.0), track)
    variants = {'trained': Variant(0, trained[metric], 0.0), **measured.variants(epochs)}
    found = measured.curves(epochs) if curves else {}
    for name, options in (('weights', {'weights': True, 'tolerance': _ALL}), ('default', {})):
        student = copy.deepcopy(model)
        report = fold_attention(
            student,
            batches,
            forward=outputs_of_batch,
            epochs=epochs,
            capture=False,
            track=track,
            **options,
        )
        variants[name] = Variant(len(report.removed), values(student).get(metric, 0.0), report.change)
    without = copy.deepcopy(model)
    fold_attention(without, batches, forward=outputs_of_batch, epochs=0, tolerance=_ALL, capture=False)
    data = model.data_preprocessor(batches[0], False)
    latency = _latency(model, without, tuple(data['inputs'].shape[2:]), rounds, track) if rounds else {}
    return Comparison(str(checkpoint), metric, len(measured.folding.gates), variants, found, latency)


class _Measured:
    """Variants of one network, which are measured with its switches."""

    def __init__(
        self, model: nn.Module, batches: list, value: Callable[[nn.Module], float], track: Track
    ) -> None:
        self.value = value
        self.folding = Folding(model, batches, outputs_of_batch, None, None, False, track)
        with torch.no_grad():
            statistics, self.energy = self.folding.means()
            placements, _ = self.folding.place(self.energy)
            self.means = {name: values.mean.float() for name, values in statistics.items()}
            self.gates = [gate for gate in self.folding.gates if gate.name in placements]
            if not self.gates:
                raise InputError('no attention of the network can be removed')
            with switched(self.folding.box, self.gates):
                effects = self.folding.effects(self.gates, self.energy)
        self.gates.sort(key=lambda gate: effects[gate.name])

    def _variant(self, gates: Sequence[Gate], constants: dict[str, torch.Tensor]) -> Variant:
        change = self.folding.change(gates, constants)
        self.folding.use(gates, constants)
        return Variant(len(gates), self.value(self.folding.box[0]), change)

    @torch.no_grad()
    def variants(self, epochs: int) -> dict[str, Variant]:
        """Measure the variants with all constants."""
        with switched(self.folding.box, self.gates):
            distilled = self.folding.distilled(self.gates, self.energy, epochs)
            return {
                name: self._variant(self.gates, constants)
                for name, constants in (
                    ('means', self.means),
                    ('energy', self.energy),
                    ('constants', distilled),
                )
            }

    @torch.no_grad()
    def curves(self, epochs: int) -> dict[str, list[Variant]]:
        """Measure both curves."""
        found: dict[str, list[Variant]] = {'means': [], 'constants': []}
        with switched(self.folding.box, self.gates):
            for count in range(len(self.gates) + 1):
                gates = self.gates[:count]
                distilled = self.folding.distilled(gates, self.energy, epochs) if gates else {}
                found['means'].append(self._variant(gates, self.means))
                found['constants'].append(self._variant(gates, distilled))
        return found


@torch.no_grad()
def _latency(
    trained: nn.Module, folded: nn.Module, size: tuple[int, int], rounds: int, track: Track
) -> dict[str, list[float]]:
    """Time two networks in turns, in torch and in ONNX Runtime."""
    import onnxruntime

    generator, found = torch.Generator().manual_seed(0), {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, model in (('trained', trained), ('folded', folded)):
            file = Path(folder, f'{name}.onnx')
            write_graph(model, file, file, size)
            sessions[name] = onnxruntime.InferenceSession(str(file), options)
        for number in BATCHES:
            image = torch.randn(number, 3, *size, generator=generator)
            runs = {
                'torch': {
                    name: lambda model=model, image=image: named_outputs(model, image)
                    for name, model in (('trained', trained), ('folded', folded))
                },
                'ONNX Runtime': {
                    name: lambda session=session, image=image: session.run(None, {'input': image.numpy()})
                    for name, session in sessions.items()
                },
            }
            for kind, functions in runs.items():
                times = time_in_turns(functions, track(range(rounds), 'timing'))
                found[f'{kind}, batch {number}'] = ratio_quantiles(times['folded'], times['trained']).tolist()
    return found


def draw_curves(comparisons: Sequence[Comparison]) -> 'Figure':
    """Draw the main metric against the number of removed modules, with the latency next to it.

    Args:
        comparisons (Sequence[Comparison]): Comparisons with curves, one row of panels for each.

    Returns:
        matplotlib.figure.Figure: The figure.

    Raises:
        InputError: If a comparison has no curves.
    """
    if any(not comparison.curves for comparison in comparisons):
        raise InputError('a comparison has no curves to draw')
    figure, axes = panels(5.5, 1.9 * len(comparisons), len(comparisons), 2)
    for (left, right), comparison in zip(axes, comparisons, strict=True):
        for (name, variants), color in zip(comparison.curves.items(), (GRAY, RED), strict=True):
            counts, values = zip(*((variant.removed, variant.value) for variant in variants), strict=True)
            left.plot(counts, values, 'o-', color=color, markersize=2.5, linewidth=1, label=CURVES[name])
        left.axhline(comparison.variants['trained'].value, color=GRAY, linewidth=0.6, linestyle=':')
        left.set_title(Path(comparison.checkpoint).stem, fontsize=TEXT)
        left.xaxis.get_major_locator().set_params(integer=True)
        left.set_xlabel('attention modules removed')
        left.set_ylabel(METRICS.get(comparison.metric, comparison.metric))
        left.legend(fontsize=TEXT, frameon=False)
        low, middle, high = zip(*comparison.latency.values(), strict=True)
        errors = [
            [m - x for m, x in zip(middle, low, strict=True)],
            [x - m for m, x in zip(middle, high, strict=True)],
        ]
        right.barh(
            list(comparison.latency), middle, xerr=errors, color=RED, height=0.5, error_kw={'linewidth': 0.6}
        )
        right.axvline(1, color=GRAY, linewidth=0.6, linestyle=':')
        right.invert_yaxis()
        right.set_xlabel('latency without attention ÷ with it')
    return figure
