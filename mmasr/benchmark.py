"""What a network costs, measured beside another in the same run. Needs torch only."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import nn


def saved_for_backward(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that one forward pass keeps for backward, each storage once, parameters apart.

    Args:
        model (nn.Module): A network.
        x (Tensor): Its input.

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

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(x)  # alive until the count is done, so that no two tensors share an address
    size = sum(kept.values())
    del out
    return size


def training_step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A function that does forward, loss, backward and an SGD step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A function that does a forward pass in eval mode."""
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def time_in_turns(functions: dict[str, Callable[[], None]], rounds: Iterable) -> dict[str, torch.Tensor]:
    """Time functions on the CPU, all of them once in every round, so that a noisy machine hits all alike.

    Args:
        functions (dict[str, callable]): What to time, by name. Each is called twice before, to warm up.
        rounds (Iterable): One item a round, such as ``range(20)`` or a progress bar over it.

    Returns:
        dict[str, Tensor]: Seconds of every round, float64, by name.
    """
    for function in functions.values():
        function()
        function()
    seconds = {name: [] for name in functions}
    for _ in rounds:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: torch.tensor(values, dtype=torch.double) for name, values in seconds.items()}


def ratio(seconds: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """10 %, 50 % and 90 % quantiles of the ratio within each round, as a tensor of shape (3,)."""
    return (seconds / reference).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.double))
