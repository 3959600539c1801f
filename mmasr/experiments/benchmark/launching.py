"""Measure what launching a network's operators costs the CPU. Needs torch only.

With few images, a GPU waits for the CPU: a step takes as long as the CPU needs for Python, autograd and
launching operators. A narrow network on a small image computes almost nothing, so a CPU alone can measure
this part.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ...errors import as_input_error
from ...timing import ratio_quantiles, time_in_turns
from .steps import inference_step
from .workload import Workload

PHASES = 'forward', 'backward', 'optimizer'


@dataclasses.dataclass
class LaunchCost:
    """CPU time that one network needs; ratios are relative to the first network of the run.

    Attributes:
        name (str): Name of the network.
        phases (dict[str, list[float]]): CPU seconds of each of :data:`PHASES` in every round.
        training_ratio (list[float]): 10 %, 50 % and 90 % quantiles of the ratio of steps within a round.
        training_wall_ratio (list[float]): The same by the wall clock, which includes other processes.
        inference (list[float]): CPU seconds of an inference in every round.
        inference_ratio (list[float]): 10 %, 50 % and 90 % quantiles of the ratio within a round.
    """

    name: str
    phases: dict[str, list[float]]
    training_ratio: list[float]
    training_wall_ratio: list[float]
    inference: list[float]
    inference_ratio: list[float]


@torch.no_grad()
def narrow(model: nn.Module, images: torch.Tensor, divisor: int = 16) -> nn.Module:
    """Divide the widths of all layers of a network, in place. The network keeps its modules and their order.

    Convolutions and linear layers get new parameters with fewer outputs. Their inputs, and the channels of
    normalizations, follow from a forward pass. Depthwise convolutions stay depthwise.

    Args:
        model (nn.Module): A network that maps images to tensors.
        images (Tensor): Images of shape (N, 3, H, W).
        divisor (int): What to divide by; the result is rounded up. Default: 16.

    Returns:
        nn.Module: ``model``.

    Raises:
        InputError: If the network does not run with other widths.
    """
    hooks = [layer.register_forward_pre_hook(partial(_narrow, divisor)) for layer in model.modules()]
    model.eval()
    with as_input_error(f'{type(model).__name__} does not run with layers one {divisor}th as wide'):
        model(images)
    for hook in hooks:
        hook.remove()
    return model


def _narrow(divisor: int, layer: nn.Module, args: tuple) -> None:
    """Give a layer the width of its input, and fewer outputs."""
    if isinstance(layer, _ConvNd):
        inputs, depthwise = args[0].shape[1], layer.groups == layer.in_channels > 1
        outputs = math.ceil(layer.out_channels / divisor)
        if depthwise:
            outputs = inputs * (layer.out_channels // layer.in_channels)
        layer.groups = inputs if depthwise else math.gcd(layer.groups, inputs, outputs)
        layer.in_channels, layer.out_channels = inputs, outputs
        shapes = {'weight': (outputs, inputs // layer.groups, *layer.kernel_size), 'bias': (outputs,)}
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = args[0].shape[-1], math.ceil(layer.out_features / divisor)
        shapes = {'weight': (layer.out_features, layer.in_features), 'bias': (layer.out_features,)}
    elif isinstance(layer, _NormBase):
        layer.num_features = args[0].shape[1]
        shapes = dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), (layer.num_features,))
    else:
        return
    for name, shape in shapes.items():
        if (tensor := getattr(layer, name)) is not None:
            new = tensor.new_empty(shape)
            setattr(layer, name, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
    layer.reset_parameters()


class _TrainingStep:
    """A training step, as that of ``training_step``, that records the CPU time of its phases."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        model.train()
        self.model, self.workload = model, workload
        # On a GPU, torch updates all parameters together by default.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9, foreach=True)
        self.seconds: list[list[float]] = []

    def __call__(self) -> None:
        times = [time.process_time()]
        loss = self.workload.loss(self.model)
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(time.process_time())
        self.seconds.append([end - start for start, end in itertools.pairwise(times)])


class _Inference:
    """An inference that records its CPU time."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        self.run = inference_step(model, workload)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self.run()
        self.seconds.append(time.process_time() - start)


def measure_launching(
    models: dict[str, nn.Module],
    workload: Workload,
    rounds: int = 100,
    track: Callable[..., Iterable] = lambda rounds, description: rounds,
) -> list[LaunchCost]:
    """Measure narrow networks that take turns.

    CPU time is measured, which other processes hardly change.

    Args:
        models (dict[str, nn.Module]): Name -> narrow network, with the reference first.
        workload (Workload): Inference, and forward pass with a loss, on one small image.
        rounds (int): Number of rounds. Every network runs once per round. Default: 100.
        track (callable): ``(rounds, description) -> rounds``, a progress bar. Default: none.

    Returns:
        list[LaunchCost]: The cost of each network.
    """
    reference = next(iter(models))
    steps = {name: _TrainingStep(model, workload) for name, model in models.items()}
    wall = time_in_turns(steps, track(range(rounds), description='training'))
    # Without the warm-up. Shape: (rounds, phases).
    training = {name: torch.tensor(step.seconds[-rounds:]).double() for name, step in steps.items()}
    del steps  # and with them the optimizers' state
    runs = {name: _Inference(model, workload) for name, model in models.items()}
    time_in_turns(runs, track(range(rounds), description='inference'))
    inference = {name: torch.tensor(run.seconds[-rounds:]).double() for name, run in runs.items()}
    return [
        LaunchCost(
            name=name,
            phases=dict(zip(PHASES, training[name].T.tolist(), strict=True)),
            training_ratio=ratio_quantiles(training[name].sum(1), training[reference].sum(1)).tolist(),
            training_wall_ratio=ratio_quantiles(wall[name], wall[reference]).tolist(),
            inference=inference[name].tolist(),
            inference_ratio=ratio_quantiles(inference[name], inference[reference]).tolist(),
        )
        for name in models
    ]
