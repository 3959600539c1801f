"""Do two networks compute the same? Their raw outputs on the same inputs, compared."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.by_class import by_class
from ..core.merge import Merging
from ..errors import printable

if TYPE_CHECKING:
    from rich.table import Table

#: Pixels of an image, a multiple of every stride in use and what a fixed-size classifier takes, and deviation of its noise.
NOISE = (224, 1.0)
#: The same for a network with kernels that depend on the input.
NOISES = (NOISE, (160, 0.5), (288, 2.0))
#: Classes of stems that lay out pixels as channels before their convolution -> how many pixels.
_PIXELS_AS_CHANNELS = {'mmdet.Focus': 4}

#: Largest difference allowed, relative to the largest value of an output, by the coarsest type of the weights. Half
#: precision rounds every folded product again, by up to eps / 2 (5e-4 and 4e-3); its bounds are ten times that, about ten
#: times what was measured on ResNets of 18 to 101 layers.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclasses.dataclass
class Difference:
    """How far two networks are apart in one output.

    Attributes:
        output (str): Its name.
        absolute (float): Largest absolute difference; infinite where one of them is not finite.
        relative (float): The same, relative to the largest absolute value of the output.
    """

    output: str
    absolute: float
    relative: float


def noises(model: nn.Module) -> tuple[tuple[int, float], ...]:
    """The noise images that vouch for what a trained network becomes: of one size and deviation; or, where a kernel of that
    will depend on the input, of several."""
    return NOISES if any(isinstance(m, Merging) and m.depends_on_input for m in model.modules()) else (NOISE,)


def network_outputs(model: nn.Module, images: Sequence[tuple[int, float]] = (NOISE,)) -> dict[str, torch.Tensor]:
    """Run a detector, segmentor or classifier of OpenMMLab on two seeded noise images of every kind, in eval mode on the CPU.

    Raw outputs are taken, before thresholds and non-maximum suppression, which turn a difference in the last bit into one
    box more or less. For the same reason a two-stage detector's second stage gets fixed proposals. Of a segmentor they are the
    logits of every pixel, and those of its auxiliary heads.

    Args:
        model (nn.Module): A model with OpenMMLab's ``forward(inputs, data_samples, mode='tensor')``.
        images (Sequence[tuple[int, float]]): Pixels of a side and deviation of the noise, for each kind. Default: 224 and 1.

    Returns:
        dict[str, Tensor]: Every tensor the network puts out, by its place in the result; with several kinds also by these.
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
    torch.default_generator.manual_seed(0)  # of a network with noise in it, which it draws
    generator = torch.Generator().manual_seed(0)
    inputs = deviation * torch.randn(2, input_channels(model), size, size, generator=generator)
    if by_class({'mmseg.BaseSegmentor': True}, model):
        metas = [{**_shapes(inputs), 'padding_size': [0] * 4} for _ in inputs]
        outputs = {'logits': model.encode_decode(inputs, metas)}
        if model.with_auxiliary_head:
            features, heads = model.extract_feat(inputs), model.auxiliary_head
            outputs['auxiliary_head'] = [head(features) for head in (heads if isinstance(heads, nn.ModuleList) else [heads])]
        return dict(tensors('', outputs))
    if not is_detector(model):
        return dict(tensors('output', model(inputs, mode='tensor')))

    from mmdet.models.roi_heads import CascadeRoIHead, SparseRoIHead, StandardRoIHead
    from mmengine.structures import InstanceData

    samples = data_samples(inputs)
    roi_head = getattr(model, 'roi_head', None)
    if not isinstance(roi_head, CascadeRoIHead | StandardRoIHead) or isinstance(roi_head, SparseRoIHead):
        return dict(tensors('output', model(inputs, samples, mode='tensor')))
    corner, extent = torch.rand(2, 2, 16, 2, generator=generator) * size / 2
    proposals = [InstanceData(bboxes=torch.cat([c, c + e + 1], dim=1)) for c, e in zip(corner, extent, strict=True)]
    features = model.extract_feat(inputs)
    outputs = {'features': features, 'roi_head': roi_head(features, proposals, samples)}
    if model.with_rpn:
        outputs['rpn_head'] = model.rpn_head(features)
    return dict(tensors('', outputs))


def input_channels(model: nn.Module) -> int:
    """How many channels the images of a network have."""
    pixels = 1
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels // pixels
        pixels = by_class(_PIXELS_AS_CHANNELS, module) or pixels
    raise ValueError('it has no convolution, so it is not known what images it takes')


def data_samples(inputs: torch.Tensor) -> list:
    """What MMDetection is told of images: as large as they are, and nothing on them.

    Args:
        inputs (Tensor): (N, C, H, W).

    Returns:
        list[DetDataSample]: N of them.
    """
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = [DetDataSample(metainfo={**_shapes(inputs), 'scale_factor': (1.0, 1.0)}) for _ in inputs]
    for sample in samples:  # some heads look at the ground truth, if only to count it
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return samples


def _shapes(inputs: torch.Tensor) -> dict[str, tuple[int, int]]:
    """What OpenMMLab says of the size of images that nothing was done to."""
    return dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), tuple(map(int, inputs.shape[2:])))


def is_detector(model: nn.Module) -> bool:
    """Whether a model is a detector of MMDetection, which is not imported to find out."""
    return by_class({'mmdet.BaseDetector': True}, model) is not None


def tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of nested dicts, lists and tuples, with its place in them after ``name``."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(f'{name}.{key}'.lstrip('.'), item)


def compare(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> list[Difference]:
    """Compare the outputs of two networks.

    Args:
        expected (dict[str, Tensor]): Outputs by name.
        actual (dict[str, Tensor]): The same names and shapes.

    Returns:
        list[Difference]: One for each output that is not empty.

    Raises:
        ValueError: If names or shapes differ.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'the networks have different outputs: {shapes[0]} and {shapes[1]}')
    differences = []
    for name, reference in expected.items():
        if not reference.numel():
            continue
        absolute = (actual[name] - reference).abs().nan_to_num(torch.inf).max().item()
        largest = reference.abs().max().item()
        differences.append(Difference(name, absolute, absolute / largest if largest else absolute))
    return differences


def differences_table(differences: Sequence[Difference], bound: float) -> 'Table':
    """The table of how far two networks are apart, output by output.

    Args:
        differences (Sequence[Difference]): What was found.
        bound (float): What was allowed, relative to the largest value of an output.

    Returns:
        Table: To be printed.
    """
    from rich.table import Table  # the rest of this room does without

    table = Table('output', 'largest difference', f'relative (bound {bound:.0e})')
    for difference in differences:
        table.add_row(printable(difference.output), f'{difference.absolute:.1e}', f'{difference.relative:.1e}')
    return table
