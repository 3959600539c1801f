"""Time functions that take turns."""

import random
import time
from collections.abc import Callable, Iterable

import torch


def time_in_turns(functions: dict[str, Callable[[], None]], rounds: Iterable) -> dict[str, torch.Tensor]:
    """Time functions that take turns, so that noise of the machine affects all of them equally.

    Each function runs once per round, in an order that is shuffled for every round.

    Args:
        functions (dict[str, callable]): Name -> function. Each is called three times before, as a warm-up.
        rounds (Iterable): One item per round, such as ``range(20)`` or a progress bar over it.

    Returns:
        dict[str, Tensor]: Name -> seconds of every round, float64. They include the work that a function
        queues on a GPU.
    """
    for function in functions.values():
        for _ in range(3):
            function()
    seconds = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle  # the same in all processes of a group
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


def ratio_quantiles(seconds: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the 10 %, 50 % and 90 % quantiles of the ratio within each round.

    Args:
        seconds (Tensor): Seconds of a function in every round, float64, shape (rounds,).
        reference (Tensor): Seconds of the reference in every round, float64, shape (rounds,).

    Returns:
        Tensor: The quantiles, shape (3,).
    """
    return (seconds / reference).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.double))
