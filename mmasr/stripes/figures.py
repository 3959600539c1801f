"""The pictures of the paper's Fig. 1 and 4, for any network."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..plots import COLUMN, GREY, RED, SMALL, TEXT, TICK, panels
from .observer import STEADY, Stripes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def choose(names: Sequence[str], count: int = 4) -> list[str]:
    """At most ``count`` names, the first and the last among them, spread evenly."""
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _titles(rows: np.ndarray, names: Iterable[str], columns: Iterable[str]) -> None:
    """Write a module's name above each row of panels, and above the first one what each column shows."""
    # All as titles, which take no width from the panels, however long a name is.
    for ax, column in zip(rows[0], columns, strict=True):
        ax.set_title(f'{column}\n', fontsize=TEXT, pad=2)
    for ax, name in zip(rows[:, 0], names, strict=True):
        ax.set_title(name, loc='left', fontsize=SMALL, style='italic', pad=2)


def draw_stripes(modules: Sequence[Stripes]) -> 'Figure':
    """Images × channels, before and after each module: Fig. 1a of the paper, and Fig. 4 for a detector.

    Before is the module's input averaged over positions, after are its attention values. Both have the same colours, which
    span all but the outermost percent on either side.

    Args:
        modules (Sequence[Stripes]): One row of panels for each.

    Returns:
        matplotlib.figure.Figure: Of one column's width.
    """
    figure, rows = panels(COLUMN, 0.5 + 0.95 * len(modules), len(modules), 2, sharey='row')
    _titles(rows, (stripes.name for stripes in modules), ('before', 'after'))
    for stripes, axes in zip(modules, rows, strict=True):
        low, high = (np.quantile(stripes.rows, q) for q in (0.01, 0.99))  # torch's takes 16 million at most
        for ax, values in zip(axes, stripes.rows, strict=True):
            image = ax.imshow(values, aspect='auto', interpolation='nearest', cmap='viridis', vmin=low, vmax=high)
        axes[0].set_ylabel('image')
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, format='{x:g}')
        bar.ax.tick_params(labelsize=SMALL, length=TICK)
    for ax in rows[-1]:
        ax.set_xlabel('channel')
    return figure


def draw_deviations(modules: Sequence[Stripes]) -> 'Figure':
    """How the standard deviation over images is distributed over the channels of all modules, before and after: Fig. 1b.

    Args:
        modules (Sequence[Stripes]): The modules.

    Returns:
        matplotlib.figure.Figure: Of one column's width.
    """
    figure, ((ax,),) = panels(COLUMN, 2.2)
    before, after = (torch.cat([getattr(m, part).std for m in modules]).clamp(min=1e-6) for part in ('pooled', 'v'))
    low, high = (f(torch.cat([before, after]).log10()).item() for f in (torch.min, torch.max))
    edges = torch.logspace(low - 0.05, high + 0.05, 60)  # wider, so that rounding loses no channel
    for std, label, colour in ((before, 'before: pooled input', GREY), (after, 'after: attention values', RED)):
        weights = torch.full_like(std, 100 / len(std))
        ax.hist(std, bins=edges, weights=weights, alpha=0.65, color=colour, label=f'{label} (median {std.median():.2g})')
    ax.axvline(STEADY, color='black', linewidth=0.7, linestyle=':')
    ax.text(STEADY, 1.0, f' {STEADY}', transform=ax.get_xaxis_transform(), fontsize=SMALL, va='top')
    ax.set_xscale('log')
    ax.set_xlabel('standard deviation over images, per channel')
    ax.set_ylabel('% of channels')
    ax.legend(fontsize=TEXT, frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=1)
    return figure


def draw_changes(changes: dict[str, torch.Tensor], epochs: Sequence[int]) -> 'Figure':
    """|v(t + 1) - v(t)| over epochs, a line for each channel, a panel for each image: Fig. 1c of the paper.

    Args:
        changes (dict[str, Tensor]): Name of a module -> absolute changes of shape (epochs, images, channels).
        epochs (Sequence[int]): The epoch that each change ends with.

    Returns:
        matplotlib.figure.Figure: One row of panels for each module.
    """
    images = next(iter(changes.values())).shape[1]
    figure, rows = panels(COLUMN, 0.5 + len(changes), len(changes), images, sharex=True, sharey='row')
    _titles(rows, changes, (f'image {i + 1}' for i in range(images)))
    for values, axes in zip(changes.values(), rows, strict=True):
        for i, ax in enumerate(axes):
            ax.plot(epochs, values[:, i], linewidth=0.6, alpha=0.8, marker='.' if len(epochs) < 10 else None, markersize=2)
            ax.set_ylim(0, 1.05 * values.max().item() or 1)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.yaxis.set_major_formatter('{x:g}')  # a power of ten of all values would stand where the name does
        axes[0].set_ylabel('|v(t+1) − v(t)|')
    for ax in rows[-1]:
        ax.set_xlabel('epoch')
    return figure
