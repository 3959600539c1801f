"""What a network costs, measured beside others in the same run. Needs torch only."""

import contextlib
import copy
import dataclasses
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

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
        amp (bool): See :func:`training_step`. Default: False.
        compiled (bool): Whether the networks (of a detector, the backbones) are compiled before they are timed. Default: False.
        track (callable): ``(rounds, description) -> rounds``, a progress bar. Default: none.

    Returns:
        list[Cost]: One for each network.
    """
    images = len(workload.inputs)
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    counted = {name: flops(model, workload) // images for name, model in models.items()}
    on_gpu = workload.inputs.is_cuda
    kept = {} if on_gpu else {name: saved_for_backward(model, workload, amp) for name, model in models.items()}
    if compiled:
        for model in models.values():
            getattr(model, 'backbone', model).compile()
    reference = next(iter(models))

    steps = {name: training_step(model, workload, amp) for name, model in models.items()}
    if on_gpu:
        for name, model in models.items():
            own = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            plain = sum(p.numel() * p.element_size() for p in models[reference].parameters() if p.requires_grad)
            kept[name] = cuda_peak(model, steps[name]) - (own - plain)
            model.zero_grad()
    training = time_in_turns(steps, track(range(rounds), description='training'))
    del steps
    for model in models.values():
        model.zero_grad()

    runs = {name: inference(model, workload, amp) for name, model in models.items()}
    peaks = {name: cuda_peak(models[name], run) if on_gpu else None for name, run in runs.items()}
    prediction = time_in_turns(runs, track(range(rounds), description='inference'))
    return [
        Cost(
            name,
            parameters[name],
            counted[name],
            prediction[name].tolist(),
            ratio(prediction[name], prediction[reference]).tolist(),
            peaks[name],
            training[name].tolist(),
            ratio(training[name], training[reference]).tolist(),
            kept[name],
        )
        for name in models
    ]


def saved_for_backward(model: nn.Module, workload: Workload, amp: bool = False) -> int:
    """Bytes that forward pass and loss keep for backward, each storage once, parameters apart.

    Args:
        model (nn.Module): A network.
        workload (Workload): What it does.
        amp (bool): See :func:`training_step`.

    Returns:
        int: Bytes.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _autocast(workload, amp):
        loss = workload.loss(model)  # alive until the count is done, so that no two tensors share an address
    size = sum(kept.values())
    del loss
    return size


def training_step(model: nn.Module, workload: Workload, amp: bool = False) -> Callable[[], None]:
    """A function that does forward, loss, backward and an optimizer step, SGD with momentum.

    The learning rate is zero: the step costs what it always costs, and the network stays what it is, so that a variant's
    work does not drift away from another's.

    Args:
        model (nn.Module): A network; in a process group its gradients are averaged by DistributedDataParallel.
        workload (Workload): What it does.
        amp (bool): Autocast, to float16 with a gradient scaler on CUDA, to bfloat16 elsewhere. Default: False.

    Returns:
        callable: The function.
    """
    model.train()
    device = workload.inputs.device.type
    scaler = torch.amp.GradScaler(device, enabled=amp and device == 'cuda')
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(model)

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(workload, amp):
            loss = workload.loss(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def inference(model: nn.Module, workload: Workload, amp: bool = False) -> Callable[[], None]:
    """A function that predicts in eval mode, without gradients.

    Args:
        model (nn.Module): A network.
        workload (Workload): What it does.
        amp (bool): See :func:`training_step`.

    Returns:
        callable: The function.
    """
    model.eval()

    def run() -> None:
        with torch.inference_mode(), _autocast(workload, amp):
            workload.predict(model)

    return run


def _autocast(workload: Workload, amp: bool) -> torch.autocast:
    device = workload.inputs.device.type
    return torch.autocast(device, torch.float16 if device == 'cuda' else torch.bfloat16, enabled=amp)


def time_in_turns(functions: dict[str, Callable[[], None]], rounds: Iterable) -> dict[str, torch.Tensor]:
    """Time functions, all of them once in every round and in an order drawn anew, so that a noisy machine hits all alike.

    Args:
        functions (dict[str, callable]): What to time, by name. Each is called three times before, to warm up.
        rounds (Iterable): One item a round, such as ``range(20)`` or a progress bar over it.

    Returns:
        dict[str, Tensor]: Seconds of every round, float64, by name. What a function has queued on a GPU counts.
    """
    for function in functions.values():
        for _ in range(3):
            function()
    seconds = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle  # the same in every process of a group
    for _ in rounds:
        shuffle(order)
        for name in order:
            _synchronize()
            start = time.perf_counter()
            functions[name]()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: torch.tensor(values, dtype=torch.double) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(seconds: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """10 %, 50 % and 90 % quantiles of the ratio within each round, as a tensor of shape (3,)."""
    return (seconds / reference).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.double))


def cuda_peak(model: nn.Module, function: Callable[[], None]) -> int:
    """Bytes of GPU memory that a call takes at its peak, gradients included, by CUDA's own counter.

    What was taken before it (parameters, optimizer state) does not count.

    Args:
        model (nn.Module): The network that the function runs.
        function (callable): From :func:`training_step` or :func:`inference`.

    Returns:
        int: Bytes.
    """
    function()
    model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


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


def machine(device: torch.device) -> dict[str, str]:
    """What a measurement was made on: processor or GPU, system, and the versions of what takes part."""
    found = {'processor': platform.machine(), 'cores': str(len(os.sched_getaffinity(0)))}
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        found['processor'] = next((line.split(': ')[1] for line in lines if line.startswith('model name')), found['processor'])
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = torch.version.cuda
    found.update(system=f'{platform.system()} {platform.machine()}', python=platform.python_version())
    for package in ('torch', 'torchvision', 'mmengine', 'mmdet', 'mmpretrain'):
        if sys.modules.get(package):
            found[package] = sys.modules[package].__version__
    return found
