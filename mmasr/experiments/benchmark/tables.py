"""Measurements as Markdown tables."""

from collections.abc import Sequence
from statistics import median

from .launching import PHASES, LaunchCost
from .measure import Cost


def markdown_tables(costs: Sequence[Cost], batch: int) -> str:
    """Write a table of inference and a table of training.

    Args:
        costs (Sequence[Cost]): Costs of the networks of a run, the plain one first.
        batch (int): Number of images that were measured at a time.

    Returns:
        str: Both tables, without a newline at the end.
    """
    plain = costs[0]
    on_gpu = plain.inference_bytes is not None
    saved = 'peak, MiB' if on_gpu else 'kept for backward, MiB'
    inference = [['inference', 'parameters, M', 'multiply-adds, G', 'ms', 'images/s', '÷ plain']]
    training = [['training step', 'ms', '÷ plain', saved, '÷ plain']]
    if on_gpu:
        inference[0].append('peak, MiB')
    for cost in costs:
        seconds = median(cost.inference)
        size = f'{cost.parameters / 1e6:.2f}', f'{cost.multiply_adds / 1e9:.3f}'
        speed = f'{seconds * 1e3:.1f}', f'{batch / seconds:.1f}', _ratio(cost.inference_ratio)
        peak = [f'{cost.inference_bytes / 2**20:.1f}'] if on_gpu else []
        inference.append([cost.name, *size, *speed, *peak])
        speed = f'{median(cost.training) * 1e3:.1f}', _ratio(cost.training_ratio)
        memory = f'{cost.training_bytes / 2**20:.1f}', f'{cost.training_bytes / plain.training_bytes:.4f}'
        training.append([cost.name, *speed, *memory])
    return f'{_markdown(inference)}\n\n{_markdown(training)}'


def launching_tables(costs: Sequence[LaunchCost]) -> str:
    """Write a table of the CPU time of training steps, and one of inferences.

    Args:
        costs (Sequence[LaunchCost]): Costs of the networks of a run, the plain one first.

    Returns:
        str: Both tables, without a newline at the end.
    """
    training = [
        ['training step', 'CPU ms', '÷ plain', *(f'{phase}, ms' for phase in PHASES), 'wall clock ÷ plain']
    ]
    inference = [['inference', 'CPU ms', '÷ plain']]
    for cost in costs:
        step = median(map(sum, zip(*cost.phases.values(), strict=True)))
        phases = [median(cost.phases[phase]) for phase in PHASES]
        milliseconds, *parts = [f'{seconds * 1e3:.2f}' for seconds in (step, *phases)]
        ratios = _ratio(cost.training_ratio), _ratio(cost.training_wall_ratio)
        training.append([cost.name, milliseconds, ratios[0], *parts, ratios[1]])
        seconds = median(cost.inference)
        inference.append([cost.name, f'{seconds * 1e3:.2f}', _ratio(cost.inference_ratio)])
    return f'{_markdown(training)}\n\n{_markdown(inference)}'


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ['-' * width for width in widths], *rows[1:]]
    return '\n'.join('| ' + ' | '.join(map(str.ljust, line, widths)) + ' |' for line in lines)


def _ratio(quantiles: list[float]) -> str:
    low, middle, high = quantiles
    return f'{middle:.3f} ({low:.2f}-{high:.2f})'
