"""Compare the raw outputs of two networks on the same inputs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.class_lookup import lookup_by_class
from ..core.reparameterization import Reparameterization
from ..errors import InputError, printable

if TYPE_CHECKING:
    from rich.table import Table

#: Side of a noise image in pixels, a multiple of all common strides and the input size of most classifiers;
#: and the standard deviation of its noise.
NOISE = (224, 1.0)
#: The same for a network with kernels that depend on the input.
NOISES = (NOISE, (160, 0.5), (288, 2.0))
#: Classes of stems that rearrange pixels as channels before their convolution -> number of pixels.
_PIXELS_AS_CHANNELS = {'mmdet.Focus': 4}

#: Largest difference allowed, relative to the largest value of an output, by the coarsest type of the
#: weights. Half precision rounds each folded product again, by up to eps / 2 (5e-4 and 4e-3). Its bounds are
#: ten times as large, and about ten times as large as the differences measured on ResNets of 18 to 101
#: layers.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclasses.dataclass
class Difference:
    """Difference of two networks in one output.

    Attributes:
        output (str): Name of the output.
        absolute (float): Largest absolute difference.
        relative (float): The same, relative to the largest absolute value of the output.
    """

    output: str
    absolute: float
    relative: float


def coarsest(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """Return the coarsest type of some weights, float32 if there are none with a bound."""
    return max((dtype for dtype in dtypes.values() if dtype in BOUNDS), key=BOUNDS.get, default=torch.float32)


def noise_images(model: nn.Module) -> tuple[tuple[int, float], ...]:
    """Return side and deviation of the noise images to compare a trained network on before and after folding.

    One kind of image is enough, unless a folded kernel will depend on the input.
    """
    depends = any(isinstance(m, Reparameterization) and m.depends_on_input for m in model.modules())
    return NOISES if depends else (NOISE,)


def network_outputs(
    model: nn.Module, images: Sequence[tuple[int, float]] = (NOISE,)
) -> dict[str, torch.Tensor]:
    """Run a detector, segmentor or classifier of OpenMMLab on two seeded noise images of each kind.

    It runs in eval mode on the CPU. The outputs are raw, before thresholds and non-maximum suppression, which
    can turn a difference in the last bit into one box more or less. For the same reason the second stage of a
    two-stage detector gets fixed proposals. A segmentor's outputs are the logits of all pixels and of its
    auxiliary heads.

    Args:
        model (nn.Module): A model with OpenMMLab's ``forward(inputs, data_samples, mode='tensor')``.
        images (Sequence[tuple[int, float]]): Side in pixels and standard deviation of the noise, for each
            kind. Default: 224 and 1.

    Returns:
        dict[str, Tensor]: All output tensors by their place in the result; with several kinds also by the
            kind.
    """
    if len(images) == 1:
        return _outputs(model, *images[0])
    return {
        f'{name}, {size} px, × {deviation:g}': tensor
        for size, deviation in images
        for name, tensor in _outputs(model, size, deviation).items()
    }


@torch.no_grad()
@torch.random.fork_rng([])
def _outputs(model: nn.Module, size: int, deviation: float) -> dict[str, torch.Tensor]:
    model.eval()
    torch.default_generator.manual_seed(0)  # for a network that draws noise
    generator = torch.Generator().manual_seed(0)
    inputs = deviation * torch.randn(2, input_channels(model), size, size, generator=generator)
    if lookup_by_class({'mmseg.BaseSegmentor': True}, model):
        return _segmentor_outputs(model, inputs)
    if not is_detector(model):
        return dict(tensors('output', model(inputs, mode='tensor')))
    return _detector_outputs(model, inputs, generator)


def _segmentor_outputs(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    metas = [{**_shapes(inputs), 'padding_size': [0] * 4} for _ in inputs]
    outputs = {'logits': model.encode_decode(inputs, metas)}
    if model.with_auxiliary_head:
        features, heads = model.extract_feat(inputs), model.auxiliary_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        outputs['auxiliary_head'] = [head(features) for head in heads]
    return dict(tensors('', outputs))


def _detector_outputs(
    model: nn.Module, inputs: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    from mmdet.models.roi_heads import CascadeRoIHead, SparseRoIHead, StandardRoIHead
    from mmengine.structures import InstanceData

    samples = data_samples(inputs)
    roi_head = getattr(model, 'roi_head', None)
    if not isinstance(roi_head, CascadeRoIHead | StandardRoIHead) or isinstance(roi_head, SparseRoIHead):
        return dict(tensors('output', model(inputs, samples, mode='tensor')))
    corner, extent = torch.rand(2, 2, 16, 2, generator=generator) * inputs.shape[-1] / 2
    boxes = [torch.cat([c, c + e + 1], dim=1) for c, e in zip(corner, extent, strict=True)]
    features = model.extract_feat(inputs)
    proposals = [InstanceData(bboxes=b) for b in boxes]
    outputs = {'features': features, 'roi_head': roi_head(features, proposals, samples)}
    if model.with_rpn:
        outputs['rpn_head'] = model.rpn_head(features)
    return dict(tensors('', outputs))


def input_channels(model: nn.Module) -> int:
    """Return the number of channels of a network's images.

    Raises:
        InputError: If the network has no convolution.
    """
    pixels = 1
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels // pixels
        pixels = lookup_by_class(_PIXELS_AS_CHANNELS, module) or pixels
    raise InputError(
        f'{type(model).__name__} has no convolution, so the number of its input channels is unknown'
    )


def data_samples(inputs: torch.Tensor) -> list:
    """Return a ``DetDataSample`` without boxes for each image of a batch (N, C, H, W)."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = [DetDataSample(metainfo={**_shapes(inputs), 'scale_factor': (1.0, 1.0)}) for _ in inputs]
    for sample in samples:  # some heads look at the ground truth, if only to count it
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return samples


def _shapes(inputs: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Return OpenMMLab's meta information on the sizes of images that were not resized or padded."""
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return dict.fromkeys(names, tuple(map(int, inputs.shape[2:])))


def is_detector(model: nn.Module) -> bool:
    """Return whether a model is a detector of MMDetection, without importing that."""
    return lookup_by_class({'mmdet.BaseDetector': True}, model) is not None


def tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Find all tensors in nested dicts, lists and tuples.

    Args:
        name (str): Start of their names.
        value (Any): A tensor, or a container.

    Yields:
        tuple[str, Tensor]: Name, from the keys on the way to it, and tensor.
    """
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(f'{name}.{key}'.lstrip('.'), item)


def compare(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> list[Difference]:
    """Compare the outputs of two networks.

    Args:
        expected (dict[str, Tensor]): Outputs by name.
        actual (dict[str, Tensor]): Outputs of the same names and shapes.

    Returns:
        list[Difference]: The differences, one for each output that is not empty.

    Raises:
        InputError: If names or shapes differ, or an output of either network is not finite.
    """
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (expected, actual)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(f'the networks have different outputs: {shapes[0]} and {shapes[1]}')
    differences = []
    for name, reference in expected.items():
        if not reference.numel():
            continue
        for network, output in (('trained', reference), ('deployed', actual[name])):
            if not output.isfinite().all():
                raise InputError(f'the output {name} of the {network} network contains NaN or Inf')
        absolute = (actual[name] - reference).abs().max().item()
        largest = reference.abs().max().item()
        differences.append(Difference(name, absolute, absolute / largest if largest else absolute))
    return differences


def differences_table(differences: Sequence[Difference], bound: float) -> 'Table':
    """Make a table of the differences of two networks.

    Args:
        differences (Sequence[Difference]): One for each output.
        bound (float): Largest difference allowed, relative to the largest value of an output.

    Returns:
        Table: For the terminal.
    """
    from rich.table import Table  # nothing else in this file needs it

    table = Table('output', 'largest difference', f'relative (bound {bound:.0e})')
    for difference in differences:
        table.add_row(
            printable(difference.output), f'{difference.absolute:.1e}', f'{difference.relative:.1e}'
        )
    return table
