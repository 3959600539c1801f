"""From a deployed checkpoint to ONNX, checked by ONNX Runtime against torch before it is written.

The exporter is torch's TorchScript-based one, the only one that all supported versions of torch have; it needs no more than the
package onnx.
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

from ..core.by_class import by_class
from ..errors import InputError, one_line, some
from ..files import output_files, temporary_files
from ..openmmlab.checkpoint import only_data, read_checkpoint
from ..openmmlab.evaluation import quiet
from .compare import BOUNDS, NOISE, Difference, compare, data_samples, input_channels, is_detector, tensors
from .network import load_network

#: The version of ONNX's operators.
OPSET = 17
#: What a graph is checked on: number of images, height and width, deviation of their noise. It is made from the first, which
#: are of the size asked for; the last one's sides are odd however often they are halved, which pooling can get wrong.
_IMAGES = ((2, None, 1.0), (1, (160, 288), 0.5), (3, (257, 193), 2.0))
#: What may be left open, the most first. A network may hold on to what it was traced with.
_DYNAMIC = (('batch', 'height', 'width'), ('batch',), ())
#: Bytes that the weights may take: the format of an ONNX file ends at 2 GiB, and the graph needs some room.
_MOST_BYTES = 2**31 - 2**24


@dataclasses.dataclass
class Export:
    """What :func:`export` did.

    Attributes:
        path (Path): The ONNX file.
        network (str): The class of the network.
        dynamic (tuple[str, ...]): The axes of the input that are open, of ``'batch'``, ``'height'`` and ``'width'``.
        fixed (str, optional): Why not all of them are.
        inputs (list[tuple[int, ...]]): Shapes of the images that it was checked on.
        outputs (dict[str, tuple[int, ...]]): Names of the outputs -> their shapes for the first of these.
        differences (list[Difference]): How far ONNX Runtime and torch are apart, output by output, on the worst of these.
        bound (float): What was allowed, relative to the largest value of an output.
        preprocessing (str): What is to be done to images before.
        left_out (str, optional): What of the network is not in the graph, and why.
        bytes (int): Size of the file.
        seconds (float): How long it took.
    """

    path: Path
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
    seconds: float


@only_data()
def export(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust_imports: bool = False,
    size: Sequence[int] = (NOISE[0], NOISE[0]),
) -> Export:
    """Write the network of a deployed checkpoint, or of any without a training form in it, as ONNX.

    The input is called ``input``, normalized images (N, C, H, W) in float32. Outputs are the ``logits`` of a classifier or
    segmentor; of a one-stage detector what its head puts out before boxes are decoded, such as ``cls_score_0`` and
    ``bbox_pred_0``, one for each level; of a two-stage one ``features_0`` and so on of its neck and ``rpn_cls_score_0`` and so
    on of its RPN.

    Args:
        checkpoint (str | Path): A deployed checkpoint, or weights.
        config (str | Path, optional): Its config. Default: the one in the checkpoint, which is read as data.
        out (str | Path, optional): The file to write, ``*.onnx``. Default: ``<name>.onnx`` beside the checkpoint.
        force (bool): Replace what is there. Default: False.
        trust_imports (bool): As of :func:`mmasr.reparam.reparameterize`. Default: False.
        size (Sequence[int]): Height and width of the images that the graph is made from, in pixels. It takes others as well,
            unless the network is made for one size. Default: 224 and 224.

    Returns:
        Export: What was written and how well it agrees.

    Raises:
        InputError: If the input can't be used, has a training form in it, has no counterpart in ONNX, or ONNX Runtime computes
            something else than torch. Then nothing is written.
    """
    start = time.perf_counter()
    runtime = _runtime()
    source = Path(checkpoint)
    loaded = read_checkpoint(source, mmap=True)
    (target,) = output_files(source, out or source.with_suffix('.onnx'), force, ['.onnx'])
    network = load_network(source, loaded, config, trust_imports)
    del loaded
    if trained := list(network.foldable()):
        raise InputError(
            f'{source} is a training form, with {some(trained)} still to be folded; run tools/reparam.py {source} first, '
            'and export what it writes'
        )
    model = network.model
    model.eval()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weights > _MOST_BYTES:
        raise InputError(f'{source}: its weights take {weights / 2**30:.1f} GiB in float32, and an ONNX file holds up to 2 GiB')
    with temporary_files(target, force=force) as (file,), network.restrained():
        dynamic, fixed, inputs, outputs, differences = _write_and_verify(model, source, file, tuple(size), runtime)
        written = file.stat().st_size
    return Export(
        path=target,
        network=type(model).__name__,
        dynamic=dynamic,
        fixed=fixed,
        inputs=inputs,
        outputs=outputs,
        differences=differences,
        bound=BOUNDS[torch.float32],
        preprocessing=_preprocessing(model),
        left_out=_left_out(model),
        bytes=written,
        seconds=time.perf_counter() - start,
    )


def _runtime() -> Any:
    """The package onnxruntime, which only exporting needs."""
    try:
        import onnx  # noqa: F401  torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        raise InputError(f"exporting needs onnx and onnxruntime: pip install 'mmasr[export]' ({error})") from None
    return onnxruntime


class _Graph(nn.Module):
    """What of a network is exported: a normalized image in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images (N, C, H, W) to the tensors of :func:`named_outputs`."""
        return tuple(named_outputs(self.model, images).values())


def named_outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the part of a network that is exported.

    Args:
        model (nn.Module): A model with OpenMMLab's ``forward(inputs, data_samples, mode='tensor')``.
        images (Tensor): (N, C, H, W), normalized.

    Returns:
        dict[str, Tensor]: Output by name.
    """
    if not is_detector(model):
        found = {'logits' if getattr(model, 'with_head', True) else 'features': model(images, mode='tensor')}
    elif not _has_two_stages(model):
        found = _by_name(model, 'bbox_head', model(images, data_samples(images), mode='tensor'))
    else:
        features = model.extract_feat(images)
        found = {'features': features}
        if model.with_rpn and by_class({'mmdet.BaseDenseHead': True}, model.rpn_head):
            proposals = _by_name(model, 'rpn_head', model.rpn_head(features))
            found.update({f'rpn_{name}': value for name, value in proposals.items()})
    return {name.replace('.', '_'): tensor for name, tensor in tensors('', found)}


def _has_two_stages(model: nn.Module) -> bool:
    return by_class({'mmdet.TwoStageDetector': True}, model) is not None


def _by_name(model: nn.Module, head: str, outputs: Any) -> dict[str, Any]:
    """The outputs of a detector's head by the names that its loss has for them, each in the singular."""
    loss = getattr(getattr(model, head, None), 'loss_by_feat', None)
    names = list(inspect.signature(loss).parameters) if loss else []
    names = names[: names.index('batch_gt_instances')] if 'batch_gt_instances' in names else []
    if not isinstance(outputs, tuple) or len(names) != len(outputs):
        return {'output': outputs}
    return {
        name.removesuffix('es' if name.endswith('sses') else 's'): value for name, value in zip(names, outputs, strict=True)
    }


def _write_and_verify(
    model: nn.Module, source: Path, file: Path, size: tuple[int, int], runtime: Any
) -> tuple[tuple[str, ...], str | None, list[tuple[int, ...]], dict[str, tuple[int, ...]], list[Difference]]:
    """Write a graph that takes as much as possible of what the network takes, and compare what the two compute."""
    reasons = []
    for dynamic in _DYNAMIC:
        try:
            images, expected = _run(model, size, dynamic)
            _write(model, file, images[0], expected[0], _axes(images, expected, dynamic))
            differences = _compare(file, images, expected, runtime)
        except InputError as error:
            reasons.append(str(error))
        except Exception as error:  # of a network or an exporter, which can be of any kind
            reasons.append(one_line('exporting it failed', error))
        else:
            shapes = {name: tuple(tensor.shape) for name, tensor in expected[0].items()}
            return dynamic, next(iter(reasons), None), [tuple(image.shape) for image in images], shapes, differences
    raise InputError(f'{source}: {reasons[-1]}; nothing was written')


@torch.no_grad()
def _run(
    model: nn.Module, size: tuple[int, int], dynamic: Sequence[str]
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Noise images that differ in what is dynamic, and what torch makes of them; of the others those that it refuses are left
    out."""
    generator = torch.Generator().manual_seed(0)
    images, outputs = [], []
    refused = None
    for number, other, deviation in _IMAGES:
        shape = other if other and 'height' in dynamic else size
        image = deviation * torch.randn(number if 'batch' in dynamic else 1, input_channels(model), *shape, generator=generator)
        try:
            outputs.append(named_outputs(model, image))
        except Exception as error:  # a network can fail in any way
            refused = InputError(one_line(f'the network does not run on images of {shape[0]} x {shape[1]} pixels', error))
            if not images:
                raise refused from None
        else:
            images.append(image)
            if outputs[-1].keys() != outputs[0].keys():
                raise InputError('how many outputs the network has depends on the image')
    if len(images) == 1:
        raise refused
    return images, outputs


def _axes(
    images: Sequence[torch.Tensor], outputs: Sequence[Mapping[str, torch.Tensor]], dynamic: Sequence[str]
) -> dict[str, dict[int, str]]:
    """Names of the axes that are open, of the input and of the outputs: those whose lengths differ."""
    numbers = tuple(map(len, images))
    axes = {'input': {axis: name for axis, name in ((0, 'batch'), (2, 'height'), (3, 'width')) if name in dynamic}}
    for name in outputs[0]:
        lengths = enumerate(zip(*(output[name].shape for output in outputs), strict=True))
        axes[name] = {axis: 'batch' if found == numbers else f'{name}.{axis}' for axis, found in lengths if len(set(found)) > 1}
    return axes


def _write(
    model: nn.Module, file: Path, image: torch.Tensor, outputs: Mapping[str, torch.Tensor], axes: dict[str, dict[int, str]]
) -> None:
    """Have torch write the graph."""
    # Newer versions have another exporter as well, and take it unless told otherwise.
    options = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter('ignore')  # that is it, and that numbers were taken from shapes, which the comparison is for
        torch.onnx.export(
            _Graph(model).eval(),  # it comes out of there in the mode that it went in with
            (image,),
            str(file),
            input_names=['input'],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            **options,
        )


def _compare(
    file: Path, images: Sequence[torch.Tensor], expected: Sequence[Mapping[str, torch.Tensor]], runtime: Any
) -> list[Difference]:
    """Run a file with ONNX Runtime; how far every output is from torch's, on the images where that is farthest."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is in the error as well
    session = runtime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    worst: dict[str, Difference] = {}
    for image, outputs in zip(images, expected, strict=True):
        found = session.run(list(outputs), {'input': image.numpy()})
        for difference in compare(outputs, dict(zip(outputs, map(torch.from_numpy, found), strict=True))):
            known = worst.setdefault(difference.output, difference)
            # A difference that is no number is one.
            worst[difference.output] = known if difference.relative <= known.relative else difference
    for name, difference in worst.items():
        if not difference.relative <= BOUNDS[torch.float32]:
            raise InputError(
                f'ONNX Runtime computes something else than torch: {name} differs by {difference.relative:.1e} of its largest '
                f'value, more than {BOUNDS[torch.float32]:.0e}'
            )
    return list(worst.values())


def _preprocessing(model: nn.Module) -> str:
    """What a network's data preprocessor does to images, in words."""
    preprocessor = model.data_preprocessor
    steps = []
    if input_channels(model) == 3:
        flags = ('to_rgb', '_channel_conversion', 'channel_conversion')  # of MMPretrain, mmengine, MMSegmentation
        reversed_ = any(getattr(preprocessor, flag, False) for flag in flags)
        steps.append('channels in the order RGB' if reversed_ else 'channels in the order BGR')
    if getattr(preprocessor, '_enable_normalize', False):
        mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
        steps.append(f'minus {[round(m, 3) for m in mean]}, divided by {[round(s, 3) for s in std]}')
    return ', '.join([*steps, 'float32'])


def _left_out(model: nn.Module) -> str | None:
    """What of a detector is not exported, and why."""
    if not is_detector(model):
        return None
    if _has_two_stages(model):
        return 'the RoI heads, which run on proposed boxes, so decoding and filtering these comes before them'
    return 'decoding boxes from these outputs and filtering them'
