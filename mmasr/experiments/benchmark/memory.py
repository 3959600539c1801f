"""The memory that a network takes: what autograd keeps, or on a GPU the peak."""

from collections.abc import Callable

import torch
from torch import nn

from .steps import autocast
from .workload import Workload


def saved_for_backward(model: nn.Module, workload: Workload, amp: bool = False) -> int:
    """Bytes that forward pass and loss keep for backward, each storage once, parameters apart.

    Args:
        model (nn.Module): A network.
        workload (Workload): What it does.
        amp (bool): See :func:`autocast`. Default: False.

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
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(workload, amp):
        loss = workload.loss(model)  # alive until the count is done, so that no two tensors share an address
    size = sum(kept.values())
    del loss
    return size


def gradient_bytes(model: nn.Module) -> int:
    """Bytes that the gradients of a network's parameters take."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


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
