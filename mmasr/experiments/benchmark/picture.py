"""What was measured, as a picture."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from ...plots import TEXT, panels
from .measure import Cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_growth(results: dict[int, list[Cost]], batch: int, title: str) -> 'Figure':
    """What networks cost beyond the plain one over the size of images: the time of an inference, of those that are deployed
    and those that can't be; and the memory of a training step.

    Args:
        results (dict[int, list[Cost]]): Pixels of a side -> what the networks cost, the plain one first.
        batch (int): Number of images.
        title (str): What was measured.

    Returns:
        matplotlib.figure.Figure: Two panels with logarithmic axes.
    """
    sides = sorted(results)
    plain, *trained = (cost.name for cost in results[sides[0]] if not cost.name.endswith(', deployed'))
    figure, (axes,) = panels(7.5, 2.6, 1, 2)
    for number, name in enumerate(trained):
        times, bytes_ = [], []
        for side in sides:
            costs = {cost.name: cost for cost in results[side]}
            run = costs.get(f'{name}, deployed', costs[name]).inference
            times.append(median(a - b for a, b in zip(run, costs[plain].inference, strict=True)) / batch * 1e3)
            bytes_.append((costs[name].training_bytes - costs[plain].training_bytes) / batch / 2**20)
        for ax, values in zip(axes, (times, bytes_), strict=True):
            ax.plot(sides, values, 'o-', color=f'C{number}', markersize=3, linewidth=1, label=name)
    for ax, label in zip(
        axes, ('inference, ms an image beyond plain', 'training step, MiB an image beyond plain'), strict=True
    ):
        ax.set(xscale='log', yscale='log', xlabel='image side, pixels', ylabel=label)
        ax.set_xticks(sides, map(str, sides))
        ax.minorticks_off()
        low, high = ax.get_ylim()
        for power, (growth, style) in enumerate({'linear': ':', 'quadratic': '--'}.items(), 1):
            guide = [1.5 * low * (side / sides[0]) ** (2 * power) for side in sides]
            ax.plot(sides, guide, style, color='0.7', linewidth=0.8, zorder=0, label=f'{growth} in the number of positions')
        ax.set_ylim(low, high)
        ax.set_title(title, fontsize=TEXT)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=TEXT, frameon=False)
    return figure


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
