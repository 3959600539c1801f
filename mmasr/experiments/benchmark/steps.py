"""Training steps and inferences as functions without arguments, for repeated calls."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...core.compat import GradScaler
from .workload import Workload


def training_step(model: nn.Module, workload: Workload, amp: bool = False) -> Callable[[], None]:
    """Make a function that runs a training step: forward pass, loss, backward pass, and SGD with momentum.

    The learning rate is zero. So a step costs the same as any other, but the network does not change, and the
    work of the variants does not drift apart.

    Args:
        model (nn.Module): A network. In a process group, DistributedDataParallel averages its gradients.
        workload (Workload): The forward pass and the loss.
        amp (bool): Whether to use mixed precision, see :func:`autocast`; on CUDA with a gradient scaler.
            Default: False.

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


def inference_step(model: nn.Module, workload: Workload, amp: bool = False) -> Callable[[], None]:
    """Make a function that runs an inference in eval mode, without gradients.

    Args:
        model (nn.Module): A network.
        workload (Workload): The inference.
        amp (bool): Whether to use mixed precision; see :func:`autocast`. Default: False.

    Returns:
        callable: The function.
    """
    model.eval()

    def step() -> None:
        with torch.inference_mode(), autocast(workload, amp):
            workload.predict(model)

    return step


def autocast(workload: Workload, amp: bool) -> torch.autocast:
    """Return a context with mixed precision: float16 on CUDA, bfloat16 elsewhere.

    Args:
        workload (Workload): Its inputs are on the device.
        amp (bool): Whether to enable mixed precision.

    Returns:
        torch.autocast: The context.
    """
    device = workload.inputs.device.type
    return torch.autocast(device, torch.float16 if device == 'cuda' else torch.bfloat16, enabled=amp)
