"""Compare trained networks in int8: what quantization costs them, and the ranges of their weights."""

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.fold import fold
from ..core.reparameterization import BranchReparameterization
from ..deploy.export import write_graph
from ..deploy.exported import Graph
from ..deploy.quantize import LAYERS, evaluate_graphs, module_of, write_int8
from ..deploy.remove_attention import calibration_and_test_data
from ..errors import InputError
from ..openmmlab.evaluation import Track, main_metric, untracked
from ..plots import GRAY, RED, TEXT, panels
from ..timing import ratio_quantiles, time_in_turns
from ..untrusted import open_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass
class Comparison:
    """Result of :func:`compare_int8`.

    Attributes:
        checkpoint (str): The checkpoint.
        metric (str): Name of the main metric.
        values (dict[str, float]): The metric of ``float``; of ``int8`` with one scale for each output
            channel; and of ``per tensor``, which is int8 with one scale for each layer.
        latency (list[float]): 10 %, 50 % and 90 % quantiles of the latency of int8 relative to float, for one
            image; empty if that was not asked for.
        trained (dict[str, list[float]]): Convolutions -> largest weight of each output channel in the trained
            network; of a block with branches, those of its main convolution.
        folded (dict[str, list[float]]): The same in the exported file, with the normalization folded, too.
    """

    checkpoint: str
    metric: str
    values: dict[str, float]
    latency: list[float]
    trained: dict[str, list[float]]
    folded: dict[str, list[float]]


def compare_int8(
    checkpoint: str | Path, images: int = 300, rounds: int = 30, track: Track = untracked
) -> Comparison:
    """Fold and export a trained network, quantize it in two ways, and evaluate all on the test data.

    Args:
        checkpoint (str | Path): A checkpoint, trained or deployed, with its config.
        images (int): Number of training images to calibrate with. Default: 300.
        rounds (int): Rounds of timing; 0 for none. Default: 30.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        Comparison: The measurements.

    Raises:
        InputError: If the checkpoint or its data cannot be used, or the network cannot be exported.
    """
    network = open_checkpoint(checkpoint).network(calibrates=True)
    config, model = network.config, network.model
    batches, loader = calibration_and_test_data(config, images)
    model.eval()
    trained = _trained_ranges(model)
    model = fold(model)
    with tempfile.TemporaryDirectory() as folder, network.origin.limits():
        files = {name: Path(folder, f'{name}.onnx') for name in ('float', 'int8', 'per tensor')}
        size = tuple(model.data_preprocessor(next(iter(batches)), False)['inputs'].shape[2:])
        write_graph(model, Path(checkpoint), files['float'], size)
        for name in ('int8', 'per tensor'):
            pair = files['float'], files[name]
            image, *_ = write_int8(model, batches, pair, per_channel=name == 'int8', track=track)
        folded = _folded_ranges(files['float'])
        graphs = {name: Graph(file) for name, file in files.items()}
        results = evaluate_graphs(model, graphs, loader, config.test_evaluator, track)
        timed = {name: partial(graphs[name].run, image[:1]) for name in ('float', 'int8')}
        times = time_in_turns(timed, track(range(rounds), 'timing')) if rounds else {}
    metric = main_metric(config, results['float'])
    return Comparison(
        checkpoint=str(checkpoint),
        metric=metric,
        values={name: found.get(metric, 0.0) for name, found in results.items()},
        latency=ratio_quantiles(times['int8'], times['float']).tolist() if rounds else [],
        trained={name: values for name, values in trained.items() if name in folded},
        folded={name: values for name, values in folded.items() if name in trained},
    )


def _trained_ranges(model: nn.Module) -> dict[str, list[float]]:
    """Return the largest weight of each output channel of all convolutions."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BranchReparameterization) and module.main_weight:
            found[name] = _ranges(module.get_submodule(module.main_weight).weight)
        elif isinstance(module, nn.Conv2d):
            found[name] = _ranges(module.weight)
    return found


def _folded_ranges(file: Path) -> dict[str, list[float]]:
    """Return the same of an exported file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    return {
        module_of(node.name): _ranges(torch.from_numpy(numpy_helper.to_array(weights[node.input[1]]).copy()))
        for node in graph.node
        if node.op_type in LAYERS and node.input[1] in weights
    }


def _ranges(weight: torch.Tensor) -> list[float]:
    return weight.detach().abs().flatten(1).amax(1).tolist()


def draw_ranges(comparisons: Sequence[Comparison]) -> 'Figure':
    """Draw the ranges of the channels of each layer relative to that of its tensor, trained and folded.

    Args:
        comparisons (Sequence[Comparison]): One for each panel.

    Returns:
        matplotlib.figure.Figure: The figure.

    Raises:
        InputError: If a network has no convolution.
    """
    if any(not comparison.folded for comparison in comparisons):
        raise InputError('a network has no convolution whose weights could be compared')
    columns = min(3, len(comparisons))
    rows = -(-len(comparisons) // columns)
    figure, axes = panels(2.2 * columns, 1.7 * rows, rows, columns, sharex=True, sharey=True)
    for ax in axes.flat[len(comparisons) :]:
        ax.set_visible(False)
    titles = _titles([comparison.checkpoint for comparison in comparisons])
    for ax, title, comparison in zip(axes.flat, titles, comparisons, strict=False):
        for ranges, color, label in (
            (comparison.trained, GRAY, 'trained'),
            (comparison.folded, RED, 'folded'),
        ):
            shares = [torch.tensor(values) / max(values) for values in ranges.values()]
            low, middle = ([share.quantile(q).item() for share in shares] for q in (0.0, 0.5))
            ax.plot(middle, color=color, linewidth=1, label=f'{label}: median channel')
            ax.plot(low, color=color, linewidth=0.7, linestyle=':', label=f'{label}: smallest channel')
        ax.set_yscale('log', base=2)
        ax.set_title(title, fontsize=TEXT)
    for ax in axes[-1]:
        ax.set_xlabel('convolution')
    for ax in axes[:, 0]:
        ax.set_ylabel('range of a channel\n÷ range of its layer')
    axes.flat[0].legend(fontsize=TEXT - 1, frameon=False)
    return figure


def _titles(checkpoints: Sequence[str]) -> list[str]:
    """Return the first part of each path in which they differ, such as the folder of the config."""
    paths = [Path(checkpoint).with_suffix('').parts for checkpoint in checkpoints]
    levels = range(min(map(len, paths)))
    first = next((level for level in levels if len({path[level] for path in paths}) > 1), -1)
    return [path[first] for path in paths]
