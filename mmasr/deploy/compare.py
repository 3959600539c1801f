"""Run networks on the same images, to compare their raw outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.class_lookup import lookup_by_class
from ..core.differences import Difference, tensors
from ..core.reparameterization import Reparameterization
from ..errors import InputError, printable
from .images import comparison_images

if TYPE_CHECKING:
    from rich.table import Table

#: Side of an image in pixels, a multiple of all common strides and the input size of most classifiers; and
#: the standard deviation of noise.
IMAGES = (224, 1.0)
#: The same for a network with kernels that depend on the input.
ALL_IMAGES = (IMAGES, (160, 0.5), (288, 2.0))
#: Classes of stems that rearrange pixels as channels before their convolution -> number of pixels.
_PIXELS_AS_CHANNELS = {'mmdet.Focus': 4}


def images_for(model: nn.Module) -> tuple[tuple[int, float], ...]:
    """Return side and deviation of the images to compare a trained network on before and after folding.

    One kind of image is enough, unless a folded kernel will depend on the input.
    """
    depends = any(isinstance(m, Reparameterization) and m.depends_on_input for m in model.modules())
    return ALL_IMAGES if depends else (IMAGES,)


def network_outputs(
    model: nn.Module, images: Sequence[tuple[int, float]] = (IMAGES,)
) -> dict[str, torch.Tensor]:
    """Run a detector, segmentor or classifier of OpenMMLab on fixed images.

    It runs in eval mode on the CPU, on the three images of :mod:`images` for each kind. The outputs are raw
    (see :func:`raw_outputs`), because thresholds and non-maximum suppression can turn a difference in the
    last bit into one box more or less.

    Args:
        model (nn.Module): A model with OpenMMLab's ``forward(inputs, data_samples, mode='tensor')``.
        images (Sequence[tuple[int, float]]): Side in pixels and standard deviation of the noise, for each
            kind of images. Default: 224 and 1.

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
    inputs = comparison_images(model, input_channels(model), size, deviation, generator)
    return raw_outputs(model, inputs, data_samples(inputs) if is_detector(model) else None)


def raw_outputs(model: nn.Module, inputs: torch.Tensor, samples: list | None) -> dict[str, torch.Tensor]:
    """Run a detector, segmentor or classifier of OpenMMLab, and return its raw outputs.

    These are the outputs before thresholds and non-maximum suppression. The second stage of a two-stage
    detector gets fixed proposals. A segmentor's outputs are the logits of all pixels and of its auxiliary
    heads.

    Args:
        model (nn.Module): The network.
        inputs (Tensor): Normalized images (N, C, H, W).
        samples (list, optional): Data samples of the images, which only detectors need.

    Returns:
        dict[str, Tensor]: All output tensors by their place in the result.
    """
    if lookup_by_class({'mmseg.BaseSegmentor': True}, model):
        return _segmentor_outputs(model, inputs)
    if not is_detector(model):
        return dict(tensors('output', model(inputs, mode='tensor')))
    return _detector_outputs(model, inputs, samples)


def _segmentor_outputs(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    metas = [{**_shapes(inputs), 'padding_size': [0] * 4} for _ in inputs]
    outputs = {'logits': model.encode_decode(inputs, metas)}
    if model.with_auxiliary_head:
        features, heads = model.extract_feat(inputs), model.auxiliary_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        outputs['auxiliary_head'] = [head(features) for head in heads]
    return dict(tensors('', outputs))


def _detector_outputs(model: nn.Module, inputs: torch.Tensor, samples: list) -> dict[str, torch.Tensor]:
    from mmdet.models.roi_heads import CascadeRoIHead, SparseRoIHead, StandardRoIHead
    from mmengine.structures import InstanceData

    roi_head = getattr(model, 'roi_head', None)
    if not isinstance(roi_head, CascadeRoIHead | StandardRoIHead) or isinstance(roi_head, SparseRoIHead):
        return dict(tensors('output', model(inputs, samples, mode='tensor')))
    generator = torch.Generator().manual_seed(0)
    corner, extent = torch.rand(2, len(inputs), 16, 2, generator=generator) * min(inputs.shape[2:]) / 2
    boxes = torch.cat([corner, corner + extent + 1], dim=2).to(inputs.device)
    features = model.extract_feat(inputs)
    outputs = {
        'features': features,
        'roi_head': roi_head(features, [InstanceData(bboxes=b) for b in boxes], samples),
    }
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
