"""Measure the cost of several networks in one run. Needs torch only."""

import copy
import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...timing import ratio_quantiles, time_in_turns
from .memory import cuda_peak, gradient_bytes, saved_for_backward
from .steps import inference_step, training_step
from .workload import Workload


@dataclasses.dataclass
class Cost:
    """Cost of one network; ratios are relative to the first network of the run.

    Attributes:
        name (str): Name of the network.
        parameters (int): Number of parameters.
        multiply_adds (int): Multiply-adds of an inference on one image; see :func:`multiply_adds`.
        inference (list[float]): Seconds of an inference in every round.
        inference_ratio (list[float]): 10 %, 50 % and 90 % quantiles of the ratio within a round.
        inference_bytes (int | None): Peak memory of an inference on a GPU, see :func:`cuda_peak`; None on a
            CPU.
        training (list[float]): Seconds of a training step in every round.
        training_ratio (list[float]): 10 %, 50 % and 90 % quantiles of the ratio within a round.
        training_bytes (int): Memory of a training step: :func:`cuda_peak` on a GPU,
            :func:`saved_for_backward` elsewhere. Gradients of parameters that the first network does not have
            are excluded.
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
    """Measure networks that take turns.

    Args:
        models (dict[str, nn.Module]): Name -> network, with the reference first.
        workload (Workload): Inference and training step to measure.
        rounds (int): Number of rounds. Every network runs once per round. Default: 20.
        amp (bool): Whether to use mixed precision; see :func:`mmasr.experiments.benchmark.steps.autocast`.
            Default: False.
        compiled (bool): Whether to compile the networks (the backbone of a detector) before timing. Default:
            False.
        track (callable): ``(rounds, description) -> rounds``, a progress bar. Default: none.

    Returns:
        list[Cost]: The cost of each network.
    """
    reference = next(iter(models))
    on_gpu = workload.inputs.is_cuda
    operations = {name: multiply_adds(model, workload) for name, model in models.items()}
    training_bytes = (
        {} if on_gpu else {name: saved_for_backward(model, workload, amp) for name, model in models.items()}
    )
    if compiled:
        for model in models.values():
            getattr(model, 'backbone', model).compile()

    steps = {name: training_step(model, workload, amp) for name, model in models.items()}
    if on_gpu:
        for name, model in models.items():
            additional = gradient_bytes(model) - gradient_bytes(models[reference])
            training_bytes[name] = cuda_peak(model, steps[name]) - additional
            model.zero_grad()
    training = time_in_turns(steps, track(range(rounds), description='training'))
    del steps  # and with them the optimizers' state
    for model in models.values():
        model.zero_grad()

    runs = {name: inference_step(model, workload, amp) for name, model in models.items()}
    inference_bytes = {name: cuda_peak(models[name], run) if on_gpu else None for name, run in runs.items()}
    inference = time_in_turns(runs, track(range(rounds), description='inference'))
    return [
        Cost(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            multiply_adds=operations[name] // len(workload.inputs),
            inference=inference[name].tolist(),
            inference_ratio=ratio_quantiles(inference[name], inference[reference]).tolist(),
            inference_bytes=inference_bytes[name],
            training=training[name].tolist(),
            training_ratio=ratio_quantiles(training[name], training[reference]).tolist(),
            training_bytes=training_bytes[name],
        )
        for name, model in models.items()
    ]


def multiply_adds(model: nn.Module, workload: Workload) -> int:
    """Count the multiply-adds of an inference in convolutions, matrix products and similar operations.

    Args:
        model (nn.Module): A network.
        workload (Workload): The inference.

    Returns:
        int: Number of multiply-adds for the whole batch, counted by torch.
    """
    # Without gradients: torch's counter tracks them, and fails on views of parameters that are made without
    # them.
    model = copy.deepcopy(model).requires_grad_(False)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.predict(model)
    return counter.get_total_flops() // 2
