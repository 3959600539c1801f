"""Measurements as Markdown tables."""

from collections.abc import Sequence
from statistics import median

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


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ['-' * width for width in widths], *rows[1:]]
    return '\n'.join('| ' + ' | '.join(map(str.ljust, line, widths)) + ' |' for line in lines)


def _ratio(quantiles: list[float]) -> str:
    low, middle, high = quantiles
    return f'{middle:.3f} ({low:.2f}-{high:.2f})'
