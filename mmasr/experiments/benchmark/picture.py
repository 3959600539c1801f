"""What was measured, as a picture."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from ...plots import TEXT, panels
from .measure import Cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_speed(results: dict[int, list[Cost]], attentions: Sequence[str], title: str) -> 'Figure':
    """Speed against parameters, as in the paper's Fig. 3: a panel for each batch size, a colour for each attention.

    Args:
        results (dict[int, list[Cost]]): Batch size -> what the networks cost, the plain one first.
        attentions (Sequence[str]): The names of their attention modules.
        title (str): What was measured.

    Returns:
        matplotlib.figure.Figure: As wide as its panels need.
    """
    markers = {}
    figure, (axes,) = panels(3 * len(results) + 1.5, 2.6, 1, len(results))
    for ax, (batch, costs) in zip(axes, results.items(), strict=True):
        plain = batch / median(costs[0].inference)
        ax.axvline(plain, color='0.8', linewidth=0.8, zorder=0)
        ax.axhline(costs[0].parameters / 1e6, color='0.8', linewidth=0.8, zorder=0)
        for cost in costs:
            attention = next((name for name in sorted(attentions, key=len, reverse=True) if name in cost.name), '')
            form = cost.name.replace(attention, 'κ') if attention else cost.name
            marker = markers.setdefault(form, 'osDv^P<>*X'[len(markers) % 10])
            colour = f'C{attentions.index(attention)}' if attention else 'black'
            slow, middle, fast = (plain / quantile for quantile in reversed(cost.inference_ratio))
            spread = {'xerr': [[middle - slow], [fast - middle]], 'elinewidth': 0.6}
            ax.errorbar(middle, cost.parameters / 1e6, **spread, fmt=marker, color=colour, markersize=4, alpha=0.8)
        ax.set(xlabel='images per second, inference (10-90 % range)', ylabel='parameters, million')
        ax.set_title(f'{title}, batch {batch}', fontsize=TEXT)
    for form, marker in markers.items():
        axes[-1].plot([], [], marker, color='black', markerfacecolor='none', markersize=4, markeredgewidth=0.7, label=form)
    for number, attention in enumerate(attentions):
        axes[-1].plot([], [], 's', color=f'C{number}', markersize=4, label=f'κ = {attention}')
    figure.legend(loc='outside right center', fontsize=TEXT, frameon=False)
    return figure
