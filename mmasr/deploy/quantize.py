"""Quantize an exported network to int8 with ONNX Runtime, and measure what that costs on the test data."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader

from ..errors import InputError, as_input_error, shortened
from ..openmmlab.evaluation import (
    Track,
    evaluate,
    main_metric,
    to_percentage_points,
    untracked,
)
from ..timing import ratio_quantiles, time_in_turns
from .exported import Graph, computed_by
from .remove_attention import calibration_and_test_data

#: Operators with weights.
LAYERS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
#: Number of pixels that the noise is measured on, which needs all feature maps of both networks at once.
_PIXELS = 4 * 224 * 224
#: Rounds of timing.
_ROUNDS = 30


@dataclasses.dataclass
class Int8:
    """Options for quantizing an exported network.

    Attributes:
        images (int): Number of training images, without labels, to find the ranges of feature maps with.
            Default: 300.
        max_drop (float, optional): Percentage points of the main metric that may be lost. Default: any.
        keep_float (Sequence[str]): Modules whose layers stay in float. Default: none.

    Raises:
        InputError: If one of them is too small.
    """

    images: int = 300
    max_drop: float | None = None
    keep_float: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f'`images` {self.images}: use a few hundred, at least one')
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f'`max_drop` {self.max_drop}: at least 0')


@dataclasses.dataclass
class LayerNoise:
    """Noise that quantization causes in one layer, as root mean square relative to that of the values.

    Attributes:
        layer (str): Name of the module.
        weights (float): Noise of its weights.
        inputs (float): Noise of its inputs, which the layers before have caused.
        outputs (float): Noise of its outputs, after the activation function that follows.
    """

    layer: str
    weights: float
    inputs: float
    outputs: float


@dataclasses.dataclass
class Quantized:
    """Result of :func:`quantize`.

    Attributes:
        images (int): Number of images that it was calibrated with.
        metric (str): The main metric.
        before (dict[str, float]): Metrics of the float file on the test data.
        after (dict[str, float]): Metrics of the int8 file.
        bytes (tuple[int, int]): Sizes of the files in bytes.
        seconds (tuple[float, float]): Median latency of the files in seconds, for one image.
        ratio (list[float]): 10 %, 50 % and 90 % quantiles of the latency of int8 relative to float.
        size (tuple[int, int]): Height and width of that image.
        noise (list[LayerNoise]): All quantized layers with weights; first those that add most noise.
        kept (list[str]): Layers that stay in float.
    """

    images: int
    metric: str
    before: dict[str, float]
    after: dict[str, float]
    bytes: tuple[int, int]
    seconds: tuple[float, float]
    ratio: list[float]
    size: tuple[int, int]
    noise: list[LayerNoise]
    kept: list[str]


def quantize(
    model: nn.Module, config: Config, files: Sequence[Path], options: Int8, track: Track = untracked
) -> Quantized:
    """Quantize an exported network, and evaluate both on the test data.

    Weights become signed 8-bit integers with one scale per output channel; feature maps become unsigned
    8-bit integers with a zero point, with ranges from the calibration images. Operators are surrounded by
    ``QuantizeLinear`` and ``DequantizeLinear``.

    Args:
        model (nn.Module): The network that was exported, in eval mode, for what follows its exported part.
        config (Config): A config with training data, test data and a test evaluator.
        files (Sequence[Path]): The exported file, and the one to write.
        options (Int8): How to quantize.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        Quantized: The measurements.

    Raises:
        InputError: If the data or the options do not fit the network, the quantizer fails, or more is lost
            than allowed.
    """
    batches, loader = calibration_and_test_data(config, options.images)
    images, count, noise, kept = write_int8(model, batches, files, options.keep_float, track=track)
    graphs = dict(zip(('float', 'int8'), map(Graph, files), strict=True))
    before, after = evaluate_graphs(model, graphs, loader, config.test_evaluator, track).values()
    metric = main_metric(config, before)
    # Without detections there is no metric.
    lost = to_percentage_points(metric, before[metric] - after.get(metric, 0.0))
    if options.max_drop is not None and not lost <= options.max_drop:
        raise InputError(
            f'int8 loses {lost:.2f} points of {metric}, more than `max_drop` {options.max_drop:g}; use '
            f'`keep_float` for the layers that add most noise: {shortened([n.layer for n in noise])}'
        )
    image = images[:1]
    timed = {name: partial(graph.run, image) for name, graph in graphs.items()}
    times = time_in_turns(timed, track(range(_ROUNDS), 'timing'))
    return Quantized(
        images=count,
        metric=metric,
        before=before,
        after=after,
        bytes=tuple(file.stat().st_size for file in files),
        seconds=tuple(seconds.median().item() for seconds in times.values()),
        ratio=ratio_quantiles(times['int8'], times['float']).tolist(),
        size=tuple(image.shape[2:]),
        noise=noise,
        kept=kept,
    )


def evaluate_graphs(
    model: nn.Module,
    graphs: Mapping[str, Graph],
    loader: DataLoader,
    evaluator: dict | list,
    track: Track = untracked,
) -> dict[str, dict[str, float]]:
    """Evaluate a network with each of several graphs in place of its exported part.

    Args:
        model (nn.Module): The network that was exported, in eval mode.
        graphs (Mapping[str, Graph]): Name, such as ``int8``, -> graph.
        loader (DataLoader): The test data.
        evaluator (dict | list): Config of the metrics.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        dict[str, dict[str, float]]: Name of the graph -> name of a metric -> value.

    Raises:
        InputError: See :func:`mmasr.openmmlab.evaluation.evaluate` and
            :func:`mmasr.deploy.exported.computed_by`.
    """
    results = {}
    for name, graph in graphs.items():
        with computed_by(model, graph):
            results[name] = evaluate(model, loader, evaluator, track, f'evaluating {name}')
    return results


def write_int8(
    model: nn.Module,
    batches: Iterable,
    files: Sequence[Path],
    keep_float: Sequence[str] = (),
    per_channel: bool = True,
    track: Track = untracked,
) -> tuple[torch.Tensor, int, list[LayerNoise], list[str]]:
    """Write the quantized form of an exported file.

    Args:
        model (nn.Module): The network that was exported, for its data preprocessor.
        batches (Iterable): Batches of a dataloader to calibrate with.
        files (Sequence[Path]): The exported file, and the one to write. Other files in their folder that are
            named ``prepared.onnx`` and ``maps.onnx`` are overwritten.
        keep_float (Sequence[str]): See :class:`Int8`. Default: none.
        per_channel (bool): Whether weights have one scale per output channel, not one per tensor. Default:
            True.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        tuple[Tensor, int, list[LayerNoise], list[str]]: Some of the images; their number; ``noise`` and
        ``kept`` of :class:`Quantized`.

    Raises:
        InputError: If the images do not fit the graph, a layer to keep is unknown, or the quantizer fails.
    """
    source, target = files
    prepared = source.with_name('prepared.onnx')
    with as_input_error('the quantizer failed'), _quiet_quantizer():
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # Shape inference by symbols fails for some dynamic sizes, and nothing here needs it.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        inputs = _Inputs(model, batches, Graph(source), track)
        maps = _feature_maps(prepared, inputs.first)
        nodes, kept = _find_kept(prepared, keep_float, maps)
        _quantize(prepared, target, inputs, nodes, per_channel)
        noise = _noise(prepared, target, maps, _feature_maps(target, inputs.first))
    return inputs.first, inputs.count, noise, kept


class _Inputs:
    """Calibration images as the quantizer wants them: an iterator with ``get_next``.

    Attributes:
        first (Tensor): Images of the first batch, for measurements.
        count (int): Number of images that were used.
    """

    def __init__(self, model: nn.Module, batches: Iterable, graph: Graph, track: Track) -> None:
        self.count = 0
        self._parts = self._run(model, batches, graph, track)
        first = next(self._parts)
        self.first = first[: max(1, _PIXELS // first[0, 0].numel())]
        self._parts = itertools.chain([first], self._parts)

    def _run(self, model: nn.Module, batches: Iterable, graph: Graph, track: Track) -> Iterator[torch.Tensor]:
        for batch in track(batches, 'calibrating'):
            images = model.data_preprocessor(batch, False)['inputs']
            if graph.size and [*images.shape[2:]] != graph.size:
                shown = [' x '.join(map(str, size)) for size in (graph.size, images.shape[2:])]
                raise InputError(
                    f'the graph takes images of {shown[0]} pixels only, and the data has some of {shown[1]}; '
                    'pass their `size`, or a test pipeline that makes them equal'
                )
            self.count += len(images)
            yield from graph.batches(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None at the end."""
        images = next(self._parts, None)
        return None if images is None else {'input': images.numpy()}


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Suppress what the quantizer logs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _find_kept(
    file: Path, modules: Sequence[str], maps: Mapping[str, Sequence[Any]]
) -> tuple[list[str], list[str]]:
    """Find what stays in float: some modules, and nodes with infinite values, which have no range.

    Returns:
        tuple[list[str], list[str]]: Names of the nodes, and of the layers among them.
    """
    import numpy
    import onnx

    nodes = onnx.load(file).graph.node
    layers = sorted({module_of(node.name) for node in nodes if node.op_type in LAYERS})
    for module in modules:
        if not any(_is_in(layer, [module]) for layer in layers):
            raise InputError(f'`keep_float` {module}: no such layer; the layers are {shortened(layers)}')
    infinite = {name for name, values in maps.items() if not all(numpy.isfinite(v).all() for v in values)}
    kept = [
        n for n in nodes if _is_in(module_of(n.name), modules) or infinite.intersection([*n.input, *n.output])
    ]
    return [n.name for n in kept], sorted({module_of(n.name) for n in kept if n.op_type in LAYERS})


def _is_in(layer: str, modules: Sequence[str]) -> bool:
    return any(f'{layer}.'.startswith(f'{module}.') for module in modules)


def module_of(node: str) -> str:
    """Return the name of the module that a node of an exported graph computes a part of.

    Args:
        node (str): Name of the node, such as ``/model/backbone/layer1/layer1.0/conv1/Conv``: modules in
            containers have the name of the container in front. ``model`` is the whole network; the nodes of a
            two-stage detector lack it, because only some of its modules are called.

    Returns:
        str: The name, such as ``backbone.layer1.0.conv1``.
    """
    parts: list[str] = []
    for part in node.strip('/').removeprefix('model/').split('/')[:-1]:
        while parts and part.startswith(f'{parts[-1]}.'):
            parts.pop()
        parts.append(part)
    return '.'.join(parts)


def _quantize(source: Path, target: Path, inputs: _Inputs, kept: Sequence[str], per_channel: bool) -> None:
    """Quantize a file with ONNX Runtime's static quantization."""
    import numpy
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with numpy.errstate(all='ignore'):  # it computes ranges of infinite feature maps, too
        quantize_static(
            source,
            target,
            inputs,
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            # On x86, ONNX Runtime computes unsigned inputs with signed weights several times as fast as
            # signed ones (docs/quantization.md).
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )


def _feature_maps(file: Path, images: torch.Tensor) -> dict[str, list[Any]]:
    """Return all feature maps that a file computes, by name."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    with_maps = file.with_name('maps.onnx')
    debug.modify_model_output_intermediate_tensors(file, with_maps)
    try:
        return debug.collect_activations(str(with_maps), [{'input': images.numpy()}])
    finally:
        with_maps.unlink()


def _noise(
    source: Path, target: Path, maps: Mapping[str, list[Any]], quantized_maps: Mapping[str, list[Any]]
) -> list[LayerNoise]:
    """Compare feature maps and weights of the float and the int8 file; sort layers by the noise they add."""
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    matching = debug.create_activation_matching(quantized_maps, maps)
    matching = {name: match for name, match in matching.items() if 'float' in match}
    found = debug.compute_activation_error(matching, _relative)
    noise = {name: values['xmodel_err'] for name, values in found.items()}
    weights = debug.compute_weight_error(debug.create_weight_matching(source, target), _relative)
    nodes = onnx.load(source).graph.node
    layers = [
        LayerNoise(module_of(node.name), weights[node.input[1]], noise[node.input[0]], noise[output])
        for node in nodes
        if node.op_type in LAYERS
        and node.input[1] in weights
        and node.input[0] in noise
        and (output := _quantized_output(node.output[0], nodes, noise))
    ]
    return sorted(layers, key=lambda layer: layer.inputs - layer.outputs)


def _relative(values: Any, quantized: Any) -> float:
    """Return the noise of quantized values, arrays or lists of some, relative to the values."""
    import numpy

    values, quantized = (
        numpy.concatenate([numpy.ravel(part) for part in (x if isinstance(x, list) else [x])])
        for x in (values, quantized)
    )
    return float(numpy.linalg.norm(quantized - values) / max(numpy.linalg.norm(values), 1e-30))


def _quantized_output(name: str, nodes: Sequence[Any], noise: dict[str, float]) -> str | None:
    """Return the first quantized feature map among an output and what is computed from it alone."""
    while name not in noise:
        readers = [node for node in nodes if name in node.input]
        if len(readers) != 1:
            return None
        name = readers[0].output[0]
    return name
