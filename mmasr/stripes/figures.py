"""Pictures of stripes like the paper's Fig. 1 and 4, for any network."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..plots import COLUMN, GRAY, RED, SMALL, TEXT, TICK, panels
from .observer import STEADY, Stripes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def choose_evenly(names: Sequence[str], count: int = 4) -> list[str]:
    """Choose names at even distances, including the first and the last.

    Args:
        names (Sequence[str]): Names to choose from.
        count (int): Maximum number to choose, at least 2. Default: 4.

    Returns:
        list[str]: The chosen names, in their order.
    """
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _add_titles(rows: np.ndarray, names: Iterable[str], columns: Iterable[str]) -> None:
    """Write the module's name above each row of panels, and the columns' titles above the first row."""
    # Titles take no width from the panels, however long a name is.
    for ax, column in zip(rows[0], columns, strict=True):
        ax.set_title(f'{column}\n', fontsize=TEXT, pad=2)
    for ax, name in zip(rows[:, 0], names, strict=True):
        ax.set_title(name, loc='left', fontsize=SMALL, style='italic', pad=2)


def draw_stripes(modules: Sequence[Stripes]) -> 'Figure':
    """Draw images × channels before and after each module: Fig. 1a of the paper, and Fig. 4 for a detector.

    "Before" is the module's input averaged over positions; "after" are its attention values. Both use the
    same colors, which span all values except the lowest and the highest percent.

    Args:
        modules (Sequence[Stripes]): The modules, one row of panels each.

    Returns:
        matplotlib.figure.Figure: A figure as wide as one column of a paper.
    """
    figure, rows = panels(COLUMN, 0.5 + 0.95 * len(modules), len(modules), 2, sharey='row')
    _add_titles(rows, (stripes.name for stripes in modules), ('before', 'after'))
    for stripes, axes in zip(modules, rows, strict=True):
        # NumPy's quantile, because torch's takes at most 16 million elements.
        low, high = (np.quantile(stripes.rows, q) for q in (0.01, 0.99))
        for ax, values in zip(axes, stripes.rows, strict=True):
            image = ax.imshow(
                values, aspect='auto', interpolation='nearest', cmap='viridis', vmin=low, vmax=high
            )
        axes[0].set_ylabel('image')
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, format='{x:g}')
        bar.ax.tick_params(labelsize=SMALL, length=TICK)
    for ax in rows[-1]:
        ax.set_xlabel('channel')
    return figure


def draw_deviations(modules: Sequence[Stripes]) -> 'Figure':
    """Draw a histogram of the standard deviations over images, for all channels of all modules: Fig. 1b.

    Args:
        modules (Sequence[Stripes]): The modules.

    Returns:
        matplotlib.figure.Figure: Two histograms, before and after the modules, as wide as one column of a
        paper.
    """
    figure, ((ax,),) = panels(COLUMN, 2.2)
    before, after = (
        torch.cat([getattr(m, part).std for m in modules]).clamp(min=1e-6) for part in ('pooled', 'v')
    )
    low, high = (f(torch.cat([before, after]).log10()).item() for f in (torch.min, torch.max))
    edges = torch.logspace(low - 0.05, high + 0.05, 60)  # with a margin, so that rounding loses no channel
    for std, label, color in (
        (before, 'before: pooled input', GRAY),
        (after, 'after: attention values', RED),
    ):
        weights = torch.full_like(std, 100 / len(std))
        label = f'{label} (median {std.median():.2g})'
        ax.hist(std, bins=edges, weights=weights, alpha=0.65, color=color, label=label)
    ax.axvline(STEADY, color='black', linewidth=0.7, linestyle=':')
    ax.text(STEADY, 1.0, f' {STEADY}', transform=ax.get_xaxis_transform(), fontsize=SMALL, va='top')
    ax.set_xscale('log')
    ax.set_xlabel('standard deviation over images, per channel')
    ax.set_ylabel('% of channels')
    ax.legend(fontsize=TEXT, frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=1)
    return figure


def draw_changes(changes: dict[str, torch.Tensor], epochs: Sequence[int]) -> 'Figure':
    """Draw |v(t + 1) - v(t)| over epochs, as in Fig. 1c of the paper: a line per channel, and their median.

    Args:
        changes (dict[str, Tensor]): Name of a module -> absolute changes of shape (epochs, images, channels).
            The figure shows their mean over the images.
        epochs (Sequence[int]): The epoch at the end of each change.

    Returns:
        matplotlib.figure.Figure: One panel for each module.
    """
    figure, rows = panels(COLUMN, 0.5 + 0.8 * len(changes), len(changes), 1, sharex=True)
    marker = '.' if len(epochs) < 10 else None
    for (name, values), (ax,) in zip(changes.items(), rows, strict=True):
        channels = values.mean(1)
        ax.plot(epochs, channels, color=GRAY, linewidth=0.5, alpha=0.6, marker=marker, markersize=2)
        ax.plot(epochs, channels.median(1).values, color=RED, linewidth=1.2, marker=marker, markersize=3)
        ax.set_ylim(0, 1.05 * channels.max().item() or 1)
        ax.set_title(name, loc='left', fontsize=SMALL, style='italic', pad=2)
        ax.xaxis.get_major_locator().set_params(integer=True)
        # Without a common power of ten, which matplotlib would write where the module's name is.
        ax.yaxis.set_major_formatter('{x:g}')
    figure.supylabel('change of the attention values in one epoch', fontsize=TEXT)
    rows[-1, 0].set_xlabel('epoch')
    return figure
