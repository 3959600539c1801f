"""Training steps and inferences, as functions to call again and again."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...core.versions import GradScaler
from .workload import Workload


def training_step(model: nn.Module, workload: Workload, amp: bool = False) -> Callable[[], None]:
    """A function that does forward, loss, backward and an optimizer step, SGD with momentum.

    The learning rate is zero: the step costs what it always costs, and the network stays what it is, so that a variant's
    work does not drift away from another's.

    Args:
        model (nn.Module): A network; in a process group its gradients are averaged by DistributedDataParallel.
        workload (Workload): What it does.
        amp (bool): See :func:`autocast`; with a gradient scaler on CUDA. Default: False.

    Returns:
        callable: The function.
    """
    model.train()
    device = workload.inputs.device.type
    scaler = GradScaler(enabled=amp and device == 'cuda')
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(model)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(workload, amp):
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
        amp (bool): See :func:`autocast`. Default: False.

    Returns:
        callable: The function.
    """
    model.eval()

    def run() -> None:
        with torch.inference_mode(), autocast(workload, amp):
            workload.predict(model)

    return run


def autocast(workload: Workload, amp: bool) -> torch.autocast:
    """Mixed precision if ``amp``: float16 on CUDA, bfloat16 elsewhere."""
    device = workload.inputs.device.type
    return torch.autocast(device, torch.float16 if device == 'cuda' else torch.bfloat16, enabled=amp)
