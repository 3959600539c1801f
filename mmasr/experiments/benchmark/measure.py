"""What a network costs, measured beside others in the same run. Needs torch only."""

import copy
import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .memory import cuda_peak, gradient_bytes, saved_for_backward
from .steps import inference, training_step
from .timing import ratio, time_in_turns
from .workload import Workload


@dataclasses.dataclass
class Cost:
    """What one of several networks costs; the ratios are to the first of them.

    Attributes:
        name (str): The network's name.
        parameters (int): Number of parameters.
        multiply_adds (int): Of an inference on one image, see :func:`flops`.
        inference (list[float]): Seconds of an inference, in every round.
        inference_ratio (list[float]): 10 %, 50 % and 90 % quantiles of the ratio within a round.
        inference_bytes (int | None): Peak memory of an inference on a GPU, see :func:`cuda_peak`.
        training (list[float]): Seconds of a training step, in every round.
        training_ratio (list[float]): As for inference.
        training_bytes (int): Memory of a training step: on a GPU :func:`cuda_peak`, elsewhere :func:`saved_for_backward`; the
            gradients of the parameters that the first network does not have are left out.
    """

    name: str
    parameters: int
    multiply_adds: int
    inference: list[float]
    inference_ratio: list[float]
    inference_bytes: int | None
    training: list[float]
    training_ratio: list[float]
    training_bytes: int


def measure(
    models: dict[str, nn.Module],
    workload: Workload,
    rounds: int = 20,
    amp: bool = False,
    compiled: bool = False,
    track: Callable[..., Iterable] = lambda rounds, description: rounds,
) -> list[Cost]:
    """Measure networks side by side.

    Args:
        models (dict[str, nn.Module]): The networks by name, the reference first.
        workload (Workload): What they do.
        rounds (int): Number of rounds, in each of which every network runs once. Default: 20.
        amp (bool): See :func:`autocast`. Default: False.
        compiled (bool): Whether the networks (of a detector, the backbones) are compiled before they are timed. Default: False.
        track (callable): ``(rounds, description) -> rounds``, a progress bar. Default: none.

    Returns:
        list[Cost]: One for each network.
    """
    reference = next(iter(models))
    on_gpu = workload.inputs.is_cuda
    multiply_adds = {name: flops(model, workload) // len(workload.inputs) for name, model in models.items()}
    training_bytes = {} if on_gpu else {name: saved_for_backward(model, workload, amp) for name, model in models.items()}
    if compiled:
        for model in models.values():
            getattr(model, 'backbone', model).compile()

    steps = {name: training_step(model, workload, amp) for name, model in models.items()}
    if on_gpu:
        for name, model in models.items():
            more = gradient_bytes(model) - gradient_bytes(models[reference])
            training_bytes[name] = cuda_peak(model, steps[name]) - more
            model.zero_grad()
    training = time_in_turns(steps, track(range(rounds), description='training'))
    del steps  # and what the optimizers remember
    for model in models.values():
        model.zero_grad()

    runs = {name: inference(model, workload, amp) for name, model in models.items()}
    inference_bytes = {name: cuda_peak(models[name], run) if on_gpu else None for name, run in runs.items()}
    prediction = time_in_turns(runs, track(range(rounds), description='inference'))
    return [
        Cost(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            multiply_adds=multiply_adds[name],
            inference=prediction[name].tolist(),
            inference_ratio=ratio(prediction[name], prediction[reference]).tolist(),
            inference_bytes=inference_bytes[name],
            training=training[name].tolist(),
            training_ratio=ratio(training[name], training[reference]).tolist(),
            training_bytes=training_bytes[name],
        )
        for name, model in models.items()
    ]


def flops(model: nn.Module, workload: Workload) -> int:
    """Multiply-adds of an inference: of convolutions, matrix products and the like, as counted by torch.

    Args:
        model (nn.Module): A network.
        workload (Workload): What it does.

    Returns:
        int: Their number.
    """
    # The counter follows gradients, and stumbles over views of parameters made without them.
    model = copy.deepcopy(model).requires_grad_(False)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.predict(model)
    return counter.get_total_flops() // 2
