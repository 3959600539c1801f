"""Memory that a network needs: what autograd saves, or the peak on a GPU."""

from collections.abc import Callable

import torch
from torch import nn

from .steps import autocast
from .workload import Workload


def saved_for_backward(model: nn.Module, workload: Workload, amp: bool = False) -> int:
    """Count the bytes that autograd saves for the backward pass of the loss.

    Every storage counts once, and parameters do not count.

    Args:
        model (nn.Module): A network.
        workload (Workload): The forward pass and the loss.
        amp (bool): Whether to use mixed precision; see :func:`mmasr.experiments.benchmark.steps.autocast`.
            Default: False.

    Returns:
        int: Number of bytes.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), autocast(workload, amp):
        loss = workload.loss(model)  # alive until the sum is taken, so that no two tensors share an address
    size = sum(saved.values())
    del loss
    return size


def gradient_bytes(model: nn.Module) -> int:
    """Return the number of bytes of the gradients of a network's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def cuda_peak(model: nn.Module, function: Callable[[], None]) -> int:
    """Measure the peak GPU memory of a call with CUDA's own counter, including gradients.

    Memory that was allocated before (parameters, optimizer state) does not count.

    Args:
        model (nn.Module): The network that the function runs.
        function (callable): The result of :func:`mmasr.experiments.benchmark.steps.training_step` or
            :func:`mmasr.experiments.benchmark.steps.inference_step`.

    Returns:
        int: Number of bytes.
    """
    function()
    model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before
