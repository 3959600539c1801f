"""Export a deployed checkpoint to ONNX, after comparing ONNX Runtime with torch.

The exporter is torch's TorchScript-based one. It is the only one that all supported versions of torch have,
and needs only the package onnx.
"""

import dataclasses
import inspect
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.differences import BOUNDS, Difference, check_differences, compare
from ..errors import InputError, as_input_error, shortened, with_source
from ..files import output_files, temporary_files
from ..openmmlab.config import load_config
from ..openmmlab.evaluation import Track, quiet, untracked
from ..untrusted import open_checkpoint
from .compare import IMAGES, input_channels, is_detector
from .deployed_config import deployed_config
from .exported import Graph, has_two_stages, named_outputs, onnx_runtime
from .quantize import Int8, Quantized, quantize
from .reparameterize import find_deployable

#: Version of ONNX's operators.
OPSET = 17
#: Batches that a graph is checked on: number of images, height and width, standard deviation of their noise.
#: It is traced with the first one, which has the requested size. The sides of the last one are odd however
#: often they are halved, which pooling can get wrong.
_IMAGES = ((2, None, 1.0), (1, (160, 288), 0.5), (3, (257, 193), 2.0))
#: What errors call the networks that are compared.
_NETWORKS = ('network in torch', 'graph in ONNX Runtime')
#: Dynamic axes to try, the most first. A network may depend on the sizes that it was traced with.
_DYNAMIC = (('batch', 'height', 'width'), ('batch',), ())
#: Size limit of the weights in bytes: an ONNX file is limited to 2 GiB, and the graph needs some of it.
_MAX_BYTES = 2**31 - 2**24


@dataclasses.dataclass
class Export:
    """Result of :func:`export`.

    Attributes:
        path (Path): The ONNX file.
        int8_path (Path, optional): The quantized file, if that was asked for.
        network (str): Class of the network.
        dynamic (tuple[str, ...]): Dynamic axes of the input: some of ``'batch'``, ``'height'`` and
            ``'width'``.
        fixed (str, optional): Why not all of them are dynamic.
        inputs (list[tuple[int, ...]]): Shapes of the batches that it was checked on.
        outputs (dict[str, tuple[int, ...]]): Names of the outputs -> their shapes for the first batch.
        differences (list[Difference]): Differences of ONNX Runtime and torch, output by output, each on its
            worst batch.
        bound (float): Largest difference allowed, relative to the largest value of an output.
        preprocessing (str): Preprocessing that the images need.
        left_out (str, optional): Part of the network that is not in the graph, and why.
        bytes (int): Size of the file in bytes.
        quantized (Quantized, optional): Measurements of the quantized file.
        seconds (float): Duration.
    """

    path: Path
    int8_path: Path | None
    network: str
    dynamic: tuple[str, ...]
    fixed: str | None
    inputs: list[tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    differences: list[Difference]
    bound: float
    preprocessing: str
    left_out: str | None
    bytes: int
    quantized: Quantized | None
    seconds: float


def export(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust_imports: bool = False,
    size: Sequence[int] = (IMAGES[0], IMAGES[0]),
    int8: Int8 | None = None,
    track: Track = untracked,
) -> Export:
    """Export the network of a deployed checkpoint, or of any checkpoint without re-parameterization, to ONNX.

    The input is named ``input``: normalized images (N, C, H, W) in float32. The outputs are

    - of a classifier or segmentor: ``logits``;
    - of a one-stage detector: the outputs of its head before boxes are decoded, such as ``cls_score_0`` and
      ``bbox_pred_0``, one for each level;
    - of a two-stage detector: ``features_0``, ... of its neck, and ``rpn_cls_score_0``, ... of its RPN.

    Args:
        checkpoint (str | Path): A deployed checkpoint, or weights.
        config (str | Path, optional): Its config. Default: the one in the checkpoint, which is parsed as
            data.
        out (str | Path, optional): The file to write, ``*.onnx``. Default: ``<name>.onnx`` next to the
            checkpoint.
        force (bool): Replace an existing file. Default: False.
        trust_imports (bool): See :func:`mmasr.deploy.reparameterize.reparameterize`. Default: False.
        size (Sequence[int]): Height and width of the images to trace the graph with, in pixels. It takes
            other sizes as well, unless the network needs one size. Default: 224 and 224.
        int8 (Int8, optional): Also write ``<name>_int8.onnx``, a quantized file. Both files are evaluated on
            the test data. The data is that of ``config`` if this is given for a deployed checkpoint. Its
            network is that of its own config, or if this is refused, the deployed form of ``config``.
            Default: None.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        Export: What was written, and how well it agrees.

    Raises:
        InputError: If the input cannot be used, still has re-parameterization, cannot be expressed in ONNX,
            or if ONNX Runtime computes something else than torch; or if the quantized file loses more than
            allowed, or the data for it cannot be used. Then nothing is written.
    """
    start = time.perf_counter()
    onnx_runtime()
    source = Path(checkpoint)
    opened = open_checkpoint(source)
    suffixes = ['.onnx', '_int8.onnx'] if int8 else ['.onnx']
    targets = output_files([source], out or source.with_suffix('.onnx'), force, suffixes)
    # The config of the training has the data, but builds the network in training form.
    has_network = int8 and 'mmasr' in opened.content['meta']
    data = load_config(config) if config and has_network else None
    try:
        network = opened.network(None if data else config, trust_imports, calibrates=bool(int8) and not data)
    except InputError:  # the embedded config is refused, but the user vouches for the other one
        if not data:
            raise
        network = opened.network(deployed_config(data))
    if foldable := find_deployable(network)[0]:
        raise InputError(
            f'{source} still has re-parameterization to fold: {shortened(foldable.names())}; run '
            f'tools/reparam.py {source} first, and export the file that it writes'
        )
    model = network.model
    model.eval()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weights > _MAX_BYTES:
        raise InputError(
            f'{source}: its weights take {weights / 2**30:.1f} GiB in float32; an ONNX file can have 2 GiB'
        )
    with temporary_files(*targets, force=force) as files, network.origin.limits():
        checked = write_graph(model, source, files[0], tuple(size))
        written = files[0].stat().st_size
        with with_source(source):
            quantized = quantize(model, data or network.config, files, int8, track) if int8 else None
    return Export(
        path=targets[0],
        int8_path=targets[1] if int8 else None,
        network=type(model).__name__,
        **checked,
        bound=BOUNDS[torch.float32],
        preprocessing=_preprocessing(model),
        left_out=_left_out(model),
        bytes=written,
        quantized=quantized,
        seconds=time.perf_counter() - start,
    )


class _Graph(nn.Module):
    """Exported part of a network: normalized images in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images (N, C, H, W) to the tensors of :func:`named_outputs`, in order."""
        return tuple(named_outputs(self.model, images).values())


def write_graph(model: nn.Module, source: Path, file: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Write the graph with as many dynamic axes as possible, and compare it with the network.

    Args:
        model (nn.Module): The network, in eval mode.
        source (Path): The file it comes from, for errors.
        file (Path): The file to write.
        size (tuple[int, int]): See :func:`export`.

    Returns:
        dict[str, Any]: ``dynamic``, ``fixed``, ``inputs``, ``outputs`` and ``differences`` of
            :class:`Export`.

    Raises:
        InputError: See :func:`export`.
    """
    reasons: list[InputError] = []
    for dynamic in _DYNAMIC:
        try:
            images, expected = _run(model, size, dynamic)
            with as_input_error('the export failed'):
                _write(model, file, images[0], expected[0], _axes(images, expected, dynamic))
                differences = _compare(file, images, expected)
        except InputError as error:
            reasons.append(error)
        else:
            return {
                'dynamic': dynamic,
                'fixed': str(reasons[0]) if reasons else None,
                'inputs': [tuple(image.shape) for image in images],
                'outputs': {name: tuple(tensor.shape) for name, tensor in expected[0].items()},
                'differences': differences,
            }
    raise InputError(f'{source}: {reasons[-1]}; nothing was written') from reasons[-1]


@torch.no_grad()
def _run(
    model: nn.Module, size: tuple[int, int], dynamic: Sequence[str]
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return noise images that differ in the dynamic axes, and torch's outputs; skip what it refuses."""
    generator = torch.Generator().manual_seed(0)
    images, outputs = [], []
    refused = None
    for number, other, deviation in _IMAGES:
        shape = other if other and 'height' in dynamic else size
        batch = number if 'batch' in dynamic else 1
        image = deviation * torch.randn(batch, input_channels(model), *shape, generator=generator)
        try:
            with as_input_error(f'the network does not run on images of {shape[0]} x {shape[1]} pixels'):
                outputs.append(named_outputs(model, image))
        except InputError as error:
            refused = error
            if not images:
                raise
        else:
            images.append(image)
            if outputs[-1].keys() != outputs[0].keys():
                raise InputError('the number of outputs of the network depends on the image')
    if len(images) == 1:
        raise refused
    return images, outputs


def _axes(
    images: Sequence[torch.Tensor], outputs: Sequence[Mapping[str, torch.Tensor]], dynamic: Sequence[str]
) -> dict[str, dict[int, str]]:
    """Return the names of the dynamic axes of the input, and of the outputs: those whose lengths differ."""
    numbers = tuple(map(len, images))
    axes = {
        'input': {axis: name for axis, name in ((0, 'batch'), (2, 'height'), (3, 'width')) if name in dynamic}
    }
    for name in outputs[0]:
        lengths = enumerate(zip(*(output[name].shape for output in outputs), strict=True))
        axes[name] = {
            axis: 'batch' if found == numbers else f'{name}.{axis}'
            for axis, found in lengths
            if len(set(found)) > 1
        }
    return axes


def _write(
    model: nn.Module,
    file: Path,
    image: torch.Tensor,
    outputs: Mapping[str, torch.Tensor],
    axes: dict[str, dict[int, str]],
) -> None:
    """Write the graph with torch's exporter."""
    # Newer versions of torch use another exporter by default.
    options = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings(), quiet():
        # About this exporter being an old one, and about constants from shapes, which the comparison finds.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            _Graph(model).eval(),  # the exporter restores the mode
            (image,),
            str(file),
            input_names=['input'],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            **options,
        )


def _compare(
    file: Path, images: Sequence[torch.Tensor], expected: Sequence[Mapping[str, torch.Tensor]]
) -> list[Difference]:
    """Run a file with ONNX Runtime; return the largest difference from torch for each output."""
    graph = Graph(file)
    worst: dict[str, Difference] = {}
    for image, outputs in zip(images, expected, strict=True):
        actual = dict(zip(graph.names, graph.run(image), strict=True))
        for difference in compare(outputs, actual, _NETWORKS):
            known = worst.setdefault(difference.output, difference)
            # A difference that is NaN counts as larger.
            worst[difference.output] = known if difference.relative <= known.relative else difference
    check_differences(worst.values(), BOUNDS[torch.float32], _NETWORKS)
    return list(worst.values())


def _preprocessing(model: nn.Module) -> str:
    """Describe what a network's data preprocessor does to images."""
    preprocessor = model.data_preprocessor
    steps = []
    if input_channels(model) == 3:
        flags = (
            'to_rgb',
            '_channel_conversion',
            'channel_conversion',
        )  # of MMPretrain, mmengine, MMSegmentation
        converts = any(getattr(preprocessor, flag, False) for flag in flags)
        steps.append(f'channels in the order {"RGB" if converts else "BGR"}')
    if getattr(preprocessor, '_enable_normalize', False):
        mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
        steps.append(f'minus {[round(m, 3) for m in mean]}, divided by {[round(s, 3) for s in std]}')
    return ', '.join([*steps, 'float32'])


def _left_out(model: nn.Module) -> str | None:
    """Describe the part of a detector that is not exported; None for other networks."""
    if not is_detector(model):
        return None
    if has_two_stages(model):
        return 'the RoI heads, which need boxes that are decoded and filtered outside the graph'
    return 'the decoding and filtering of boxes'
