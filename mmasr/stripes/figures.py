"""The pictures of the paper's Fig. 1 and 4, for any network. Needs matplotlib."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .observer import STEADY, Stripes

WIDTH = 3.5  # inches, one column of a paper
SMALL = 6.5  # points
BEFORE, AFTER = '#7a869a', '#c2410c'


def choose(names: Sequence[str], count: int = 4) -> list[str]:
    """At most ``count`` names, the first and the last among them, spread evenly."""
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=300, layout='constrained')


def _style(ax: Axes) -> None:
    ax.tick_params(labelsize=SMALL, length=2)
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)


def _name(ax: Axes, name: str) -> None:
    """Write a module's name above the first panel of its row."""
    place = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
    ax.annotate(name, (0, 1), (0, 2), **place, fontsize=SMALL - 1, style='italic')


def draw_stripes(modules: Sequence[Stripes]) -> Figure:
    """Images × channels, before and after each module: Fig. 1a of the paper, and Fig. 4 for a detector.

    Before is the module's input averaged over positions, after are its attention values. Both have the same colours, which
    span all but the outermost percent on either side.

    Args:
        modules (Sequence[Stripes]): One row of panels for each.

    Returns:
        matplotlib.figure.Figure: Of one column's width.
    """
    figure = _figure(0.5 + 0.95 * len(modules))
    for row, (stripes, axes) in enumerate(
        zip(modules, figure.subplots(len(modules), 2, sharey='row', squeeze=False), strict=True)
    ):
        low, high = (np.quantile(stripes.rows, q) for q in (0.01, 0.99))  # torch's takes 16 million at most
        for ax, values, title in zip(axes, stripes.rows, ('before', 'after'), strict=True):
            image = ax.imshow(values, aspect='auto', interpolation='nearest', cmap='viridis', vmin=low, vmax=high)
            ax.tick_params(labelsize=SMALL, length=2)
            if row == 0:
                ax.set_title(title, fontsize=SMALL + 1, pad=12)
            if row == len(modules) - 1:
                ax.set_xlabel('channel', fontsize=SMALL)
        axes[0].set_ylabel('image', fontsize=SMALL)
        _name(axes[0], stripes.name)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=SMALL - 1, length=2)
    return figure


def draw_deviations(modules: Sequence[Stripes]) -> Figure:
    """How the standard deviation over images is distributed over the channels of all modules, before and after: Fig. 1b.

    Args:
        modules (Sequence[Stripes]): The modules.

    Returns:
        matplotlib.figure.Figure: Of one column's width.
    """
    figure = _figure(2.2)
    ax = figure.subplots()
    before, after = (torch.cat([getattr(m, part).std for m in modules]).clamp(min=1e-6) for part in ('pooled', 'v'))
    low, high = (f(torch.cat([before, after]).log10()).item() for f in (torch.min, torch.max))
    edges = torch.logspace(low - 0.05, high + 0.05, 60)  # wider, so that rounding loses no channel
    for std, label, colour in ((before, 'before: pooled input', BEFORE), (after, 'after: attention values', AFTER)):
        weights = torch.full_like(std, 100 / len(std))
        ax.hist(std, bins=edges, weights=weights, alpha=0.65, color=colour, label=f'{label} (median {std.median():.2g})')
    ax.axvline(STEADY, color='black', linewidth=0.7, linestyle=':')
    ax.text(STEADY, 1.0, f' {STEADY}', transform=ax.get_xaxis_transform(), fontsize=SMALL - 1, va='top')
    ax.set_xscale('log')
    ax.set_xlabel('standard deviation over images, per channel', fontsize=SMALL)
    ax.set_ylabel('% of channels', fontsize=SMALL)
    ax.legend(fontsize=SMALL - 0.5, frameon=False, loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=1)
    _style(ax)
    return figure


def draw_changes(changes: dict[str, torch.Tensor], epochs: Sequence[int]) -> Figure:
    """|v(t + 1) - v(t)| over epochs, a line for each channel, a panel for each image: Fig. 1c of the paper.

    Args:
        changes (dict[str, Tensor]): Name of a module -> absolute changes of shape (epochs, images, channels).
        epochs (Sequence[int]): The epoch that each change ends with.

    Returns:
        matplotlib.figure.Figure: One row of panels for each module.
    """
    figure = _figure(0.5 + 1.0 * len(changes))
    images = next(iter(changes.values())).shape[1]
    panels = figure.subplots(len(changes), images, sharex=True, sharey='row', squeeze=False)
    for row, ((name, values), axes) in enumerate(zip(changes.items(), panels, strict=True)):
        for i, ax in enumerate(axes):
            ax.plot(epochs, values[:, i], linewidth=0.6, alpha=0.8, marker='.' if len(epochs) < 10 else None, markersize=2)
            ax.set_ylim(0, 1.05 * values.max().item() or 1)
            ax.xaxis.get_major_locator().set_params(integer=True)
            _style(ax)
            if row == 0:
                ax.set_title(f'image {i + 1}', fontsize=SMALL + 1, pad=12)
            if row == len(changes) - 1:
                ax.set_xlabel('epoch', fontsize=SMALL)
        axes[0].set_ylabel('|v(t+1) − v(t)|', fontsize=SMALL)
        _name(axes[0], name)
    return figure
