"""Pictures of measurements."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from ...plots import TEXT, panels
from .measure import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_growth(results: dict[int, list[Cost]], batch: int, title: str) -> 'Figure':
    """Draw the cost of networks beyond the plain one against the image size.

    One panel shows the time of an inference, of the deployed form if there is one. The other shows the memory
    of a training step.

    Args:
        results (dict[int, list[Cost]]): Image side in pixels -> costs of the networks, the plain one first.
        batch (int): Number of images.
        title (str): Title of both panels.

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
            inference = costs.get(f'{name}, deployed', costs[name]).inference
            differences = (a - b for a, b in zip(inference, costs[plain].inference, strict=True))
            times.append(median(differences) / batch * 1e3)
            bytes_.append((costs[name].training_bytes - costs[plain].training_bytes) / batch / 2**20)
        for ax, values in zip(axes, (times, bytes_), strict=True):
            ax.plot(sides, values, 'o-', color=f'C{number}', markersize=3, linewidth=1, label=name)
    labels = 'inference, ms per image beyond plain', 'training step, MiB per image beyond plain'
    for ax, label in zip(axes, labels, strict=True):
        ax.set(xscale='log', yscale='log', xlabel='image side, pixels', ylabel=label)
        ax.set_xticks(sides, map(str, sides))
        ax.minorticks_off()
        _draw_guides(ax, sides)
        ax.set_title(title, fontsize=TEXT)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=TEXT, frameon=False
    )
    return figure


def _draw_guides(ax: 'Axes', sides: Sequence[int]) -> None:
    """Draw linear and quadratic growth in the number of positions, which is the square of the side."""
    low, high = ax.get_ylim()
    for power, (growth, style) in enumerate({'linear': ':', 'quadratic': '--'}.items(), 1):
        guide = [1.5 * low * (side / sides[0]) ** (2 * power) for side in sides]
        label = f'{growth} in the number of positions'
        ax.plot(sides, guide, style, color='0.7', linewidth=0.8, zorder=0, label=label)
    ax.set_ylim(low, high)


def draw_speed(results: dict[int, list[Cost]], attentions: Sequence[str], title: str) -> 'Figure':
    """Draw parameters against speed, like the paper's Fig. 3.

    There is a panel for each batch size, a color for each attention, and a marker for each form.

    Args:
        results (dict[int, list[Cost]]): Batch size -> costs of the networks, the plain one first.
        attentions (Sequence[str]): Names of the attention modules.
        title (str): Start of every panel's title.

    Returns:
        matplotlib.figure.Figure: A figure whose width depends on the number of panels.
    """
    markers = {}
    figure, (axes,) = panels(3 * len(results) + 1.5, 2.6, 1, len(results))
    for ax, (batch, costs) in zip(axes, results.items(), strict=True):
        plain = batch / median(costs[0].inference)
        ax.axvline(plain, color='0.8', linewidth=0.8, zorder=0)
        ax.axhline(costs[0].parameters / 1e6, color='0.8', linewidth=0.8, zorder=0)
        for cost in costs:
            names = (name for name in sorted(attentions, key=len, reverse=True) if name in cost.name)
            attention = next(names, None)
            form = cost.name.replace(attention, 'κ') if attention else cost.name
            color = f'C{attentions.index(attention)}' if attention else 'black'
            marker = markers.setdefault(form, 'osDv^P<>*X'[len(markers) % 10])
            slow, middle, fast = (plain / quantile for quantile in reversed(cost.inference_ratio))
            bars = {'xerr': [[middle - slow], [fast - middle]], 'elinewidth': 0.6}
            style = {'fmt': marker, 'color': color, 'markersize': 4, 'alpha': 0.8}
            ax.errorbar(middle, cost.parameters / 1e6, **bars, **style)
        ax.set(xlabel='images per second, inference (10-90 % range)', ylabel='parameters, million')
        ax.set_title(f'{title}, batch {batch}', fontsize=TEXT)
    outline = {'color': 'black', 'markerfacecolor': 'none', 'markersize': 4, 'markeredgewidth': 0.7}
    for form, marker in markers.items():
        axes[-1].plot([], [], marker, label=form, **outline)
    for number, attention in enumerate(attentions):
        axes[-1].plot([], [], 's', color=f'C{number}', markersize=4, label=f'κ = {attention}')
    figure.legend(loc='outside right center', fontsize=TEXT, frameon=False)
    return figure
