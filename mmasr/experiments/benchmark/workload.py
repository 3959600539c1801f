"""What a network is given to do in a benchmark."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...deploy.compare import tensors
from ...errors import one_line


@dataclasses.dataclass
class Workload:
    """A batch of images and what to do with it.

    Attributes:
        inputs (Tensor): Images of shape (N, 3, H, W).
        predict (callable): ``model -> anything``: inference, with all that comes after the network.
        loss (callable): ``model -> Tensor``: forward pass and loss.
    """

    inputs: torch.Tensor
    predict: Callable[[nn.Module], Any]
    loss: Callable[[nn.Module], torch.Tensor]


def images(inputs: torch.Tensor) -> Workload:
    """The workload of a network that maps images to tensors; its loss is the mean square of every output.

    Args:
        inputs (Tensor): Images of shape (N, 3, H, W).
    """

    def loss(model: nn.Module) -> torch.Tensor:
        return sum(output.square().mean() for _, output in tensors('', model(inputs)))

    return Workload(inputs, lambda model: model(inputs), loss)


def annotated_images(model: nn.Module, inputs: torch.Tensor) -> Workload:
    """The workload of a whole detector or classifier of OpenMMLab: its own losses, predictions with post-processing.

    A detector gets eight random boxes with masks an image.

    Args:
        model (nn.Module): A detector of MMDetection or classifier of MMPretrain.
        inputs (Tensor): Images of shape (N, 3, H, W), as after preprocessing.
    """
    from mmdet.models.detectors import BaseDetector
    from mmdet.testing import demo_mm_inputs
    from mmpretrain.structures import DataSample

    shape = tuple(inputs.shape[1:])
    if isinstance(model, BaseDetector):
        packed = demo_mm_inputs(len(inputs), shape, num_items=[8] * len(inputs), with_mask=True, device=inputs.device)
        for sample in packed['data_samples']:
            sample.gt_instances.labels.zero_()  # a class that every detector has
            sample.set_metainfo({'scale_factor': (1.0, 1.0), 'pad_shape': shape[1:], 'batch_input_shape': shape[1:]})
        samples = packed['data_samples']
    else:
        samples = [DataSample().set_gt_label(0).to(inputs.device) for _ in inputs]

    def loss(model: nn.Module) -> torch.Tensor:
        losses = model(inputs, samples, mode='loss')
        return sum(value.mean() for name, value in tensors('', losses) if 'loss' in name)

    return Workload(inputs, lambda model: model(inputs, samples, mode='predict'), loss)


def try_out(model: nn.Module, workload: Workload) -> None:
    """Run a network once in training and once in eval mode.

    Args:
        model (nn.Module): A network.
        workload (Workload): What it does.

    Raises:
        ValueError: If it does not run.
    """
    try:
        model.train()
        workload.loss(model).backward()
        model.eval()
        with torch.no_grad():
            workload.predict(model)
    except Exception as error:  # of whatever the network does
        problem = f'{type(model).__name__} does not run on images of {tuple(workload.inputs.shape)}'
        raise ValueError(one_line(problem, error)) from error
    model.zero_grad()
