"""The time that functions take, beside each other."""

import random
import time
from collections.abc import Callable, Iterable

import torch


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
