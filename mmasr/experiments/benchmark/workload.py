"""The work of a network in a benchmark: an inference, and a forward pass with a loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...core.differences import tensors
from ...errors import as_input_error


@dataclasses.dataclass
class Workload:
    """A batch of images and the work on it.

    Attributes:
        inputs (Tensor): Images of shape (N, 3, H, W).
        predict (callable): ``model -> anything``: an inference, including post-processing.
        loss (callable): ``model -> Tensor``: forward pass and loss.
    """

    inputs: torch.Tensor
    predict: Callable[[nn.Module], Any]
    loss: Callable[[nn.Module], torch.Tensor]


def image_workload(inputs: torch.Tensor) -> Workload:
    """Return the workload of a network that maps images to tensors.

    Its loss is the sum of the mean squares of all outputs.

    Args:
        inputs (Tensor): Images of shape (N, 3, H, W).

    Returns:
        Workload: The workload.
    """

    def loss(model: nn.Module) -> torch.Tensor:
        return sum(output.square().mean() for _, output in tensors('', model(inputs)))

    return Workload(inputs, lambda model: model(inputs), loss)


def openmmlab_workload(model: nn.Module, inputs: torch.Tensor) -> Workload:
    """Return the workload of a whole detector or classifier.

    It uses the model's own losses, and predictions with post-processing. A detector gets eight random boxes
    with masks per image.

    Args:
        model (nn.Module): A detector of MMDetection, or a classifier of MMPretrain.
        inputs (Tensor): Preprocessed images of shape (N, 3, H, W).

    Returns:
        Workload: The workload.
    """
    from mmdet.models.detectors import BaseDetector
    from mmdet.testing import demo_mm_inputs
    from mmpretrain.structures import DataSample

    shape = tuple(inputs.shape[1:])
    if isinstance(model, BaseDetector):
        packed = demo_mm_inputs(
            len(inputs), shape, num_items=[8] * len(inputs), with_mask=True, device=inputs.device
        )
        for sample in packed['data_samples']:
            sample.gt_instances.labels.zero_()  # every detector has class 0
            sample.set_metainfo(
                {'scale_factor': (1.0, 1.0), 'pad_shape': shape[1:], 'batch_input_shape': shape[1:]}
            )
        samples = packed['data_samples']
    else:
        samples = [DataSample().set_gt_label(0).to(inputs.device) for _ in inputs]

    def loss(model: nn.Module) -> torch.Tensor:
        losses = model(inputs, samples, mode='loss')
        return sum(value.mean() for name, value in tensors('', losses) if 'loss' in name)

    return Workload(inputs, lambda model: model(inputs, samples, mode='predict'), loss)


def check_runs(model: nn.Module, workload: Workload) -> None:
    """Check that a network runs, once in training mode and once in eval mode.

    Args:
        model (nn.Module): A network.
        workload (Workload): Its workload.

    Raises:
        InputError: If it does not run.
    """
    shape = tuple(workload.inputs.shape)
    with as_input_error(f'{type(model).__name__} does not run on images of shape {shape}'):
        model.train()
        workload.loss(model).backward()
        model.eval()
        with torch.no_grad():
            workload.predict(model)
    model.zero_grad()
