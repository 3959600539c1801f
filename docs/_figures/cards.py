"""Draw the pictures of the cards in docs/cards, one SVG file for each card.

Example: python docs/_figures/cards.py

Boxes are filled and everything else is a mid-tone, so that the pictures are readable on light and dark
backgrounds. Red parts exist in training only.
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmasr.plots import GRAY, RED

WIDTH, HEIGHT = 7.2, 2.3  # inches
TEXT = 8.5  # points
BOX, ROW = 0.3, 0.36  # height of a box, and distance of two branches

MAP, KERNEL = 'feature\nmap', 'one kernel\nfor x'  # what the branches add up to

#: Branches of a convolution: card -> branches, each from left to right, and the deployed layer.
BRANCHES = {
    'orepa': (
        ['W', '1×1 · k×k', '1×1 · average', '1×1 · frequencies', '1×1 in the center', 'depthwise · 1×1'],
        KERNEL,
        'convolution',
    ),
    'dbb': (['k×k, BN', '1×1, BN', '1×1, BN, k×k, BN', '1×1, BN, average, BN'], MAP, 'convolution'),
    'acnet': (['3×3, BN', '3×1, BN', '1×3, BN'], MAP, 'convolution'),
    'repvgg': (['k×k, BN', '1×1, BN', 'BN'], MAP, 'convolution'),
    'qarepvgg': (['k×k, BN', '1×1', 'identity'], 'BN of\nthe sum', 'convolution'),
    'mobileone': (['k×k, BN'] * 4 + ['1×1, BN', 'BN'], MAP, 'convolution'),
    'dilatedreparam': (
        ['7×7 depthwise, BN', '5×5, BN', '3×3, dilation 2, BN', '3×3, dilation 3, BN'],
        MAP,
        '7×7 depthwise',
    ),
    'xvolution': (['convolution, BN', 'self-attention, BN'], MAP, 'dynamic convolution'),
}

#: Attention: card -> steps from a feature map to the values v, and whether ASR can use it.
ATTENTION = {
    'se': (['mean', 'linear\nC to C/16', 'ReLU', 'linear\nC/16 to C', 'sigmoid'], True),
    'eca': (['mean', 'conv1d over\nchannels', 'sigmoid'], True),
    'srm': (['mean,\ndeviation', 'weighted sum\nper channel', 'BN', 'sigmoid'], True),
    'ie': (['mean', 'a · mean + b\nper channel', 'sigmoid'], True),
    'spa': (['pyramid\nof means', 'linear', 'ReLU', 'linear', 'sigmoid'], True),
    'cbam': (['mean,\nmaximum', 'shared\nMLP', 'sigmoid', '7×7 map of\npositions'], False),
    'dia': (['mean', 'LSTM cell of\nthe stage', 'sigmoid'], False),
}


def canvas() -> tuple[Figure, Axes]:
    """Create an empty picture whose coordinates are inches."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.axis('off')
    return figure, ax


def box(ax: Axes, x: float, y: float, text: str, color: str, width: float) -> None:
    """Draw a box with white text around a center."""
    height = BOX if '\n' not in text else 1.6 * BOX
    style = {'boxstyle': 'round,pad=0,rounding_size=0.06', 'facecolor': color, 'edgecolor': 'none'}
    ax.add_patch(matplotlib.patches.FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    ax.text(x, y, text, color='white', size=TEXT, ha='center', va='center', linespacing=1.1)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = GRAY) -> None:
    """Draw an arrow between two points."""
    properties = {'arrowstyle': '-|>', 'color': color, 'lw': 1.1, 'shrinkA': 0, 'shrinkB': 0}
    ax.annotate('', end, start, arrowprops=properties)


def label(ax: Axes, x: float, y: float, text: str, color: str = GRAY, **options) -> None:
    """Write text outside boxes."""
    ax.text(x, y, text, color=color, **{'size': TEXT, 'ha': 'center', 'va': 'center', **options})


def draw_branches(branches: list[str], summed: str, deployed: str) -> Figure:
    """Draw parallel branches whose sum becomes one layer."""
    figure, ax = canvas()
    middle, first = HEIGHT / 2 - 0.1, HEIGHT / 2 - 0.1 + ROW * (len(branches) - 1) / 2
    label(ax, 1.75, HEIGHT - 0.12, 'training')
    label(ax, 6.1, HEIGHT - 0.12, 'deployed')
    takes_map = summed != KERNEL
    if takes_map:
        label(ax, 0.12, middle, 'x')
    for number, text in enumerate(branches):
        y = first - ROW * number
        if takes_map:
            arrow(ax, (0.22, middle), (0.78, y))
        box(ax, 1.75, y, text, GRAY if number == 0 else RED, 1.9)
        ax.plot([2.72, 3.12], [y, middle], color=GRAY, lw=1.1)
    label(ax, 3.2, middle, '+', size=14)
    label(ax, 3.68, middle, summed)
    arrow(ax, (4.1, middle), (4.75, middle), RED)
    label(ax, 4.42, middle + 0.16, 'fold', RED)
    label(ax, 4.95, middle, 'x')
    arrow(ax, (5.05, middle), (5.35, middle))
    box(ax, 6.1, middle, deployed, GRAY, 1.45)
    arrow(ax, (6.85, middle), (7.1, middle))
    return figure


def draw_attention(steps: list[str], becomes_constant: bool) -> Figure:
    """Draw the way from a feature map to the attention values."""
    figure, ax = canvas()
    top, bottom = 1.55, 0.72
    middle = (top + bottom) / 2 if becomes_constant else 1.15
    ax.set_ylim(0.3, HEIGHT)
    figure.set_figheight(HEIGHT - 0.3)
    if becomes_constant:
        label(ax, 0.05, top + 0.08, 'feature map x', ha='left')
        label(ax, 0.05, bottom, 'learned vector ψ', RED, ha='left')
        arrow(ax, (0.75, top - 0.05), (1.25, middle + 0.08))
        arrow(ax, (0.75, bottom + 0.1), (1.25, middle - 0.08), RED)
    else:
        label(ax, 0.05, middle, 'feature map x', ha='left')
        arrow(ax, (0.98, middle), (1.22, middle))
    left, right = 1.2, 5.6
    pitch = (right - left) / len(steps)
    for number, text in enumerate(steps):
        x = left + pitch * (number + 0.5)
        box(ax, x, middle, text, GRAY, pitch - 0.16)
        if number:
            arrow(ax, (x - pitch / 2 - 0.08, middle), (x - pitch / 2 + 0.08, middle))
    if becomes_constant:
        arrow(ax, (right - 0.08, middle + 0.08), (right + 0.3, top - 0.05))
        arrow(ax, (right - 0.08, middle - 0.08), (right + 0.3, bottom + 0.1), RED)
        label(ax, 6.3, top + 0.08, 'scales x, for each image')
        label(ax, 6.3, bottom, 'v into γ and β', RED)
        label(ax, WIDTH / 2, HEIGHT - 0.15, 'attention: at every inference')
        label(ax, WIDTH / 2, 0.45, 'ASR: in training only', RED)
    else:
        arrow(ax, (right - 0.08, middle), (right + 0.2, middle))
        label(ax, 6.35, middle, 'scales x,\nfor each image')
    return figure


def draw_asr() -> Figure:
    """Draw a host whose parameters are multiplied by the scale."""
    figure, ax = canvas()
    label(ax, 2.1, HEIGHT - 0.12, 'training')
    label(ax, 6.0, HEIGHT - 0.12, 'deployed')
    low, high = 0.55, 1.45
    for x, text in ((0.75, 'ψ'), (1.75, 'attention κ'), (2.9, 'v = κ(ψ)')):
        box(ax, x, high, text, RED, 0.9 if text == 'ψ' else 0.95)
    arrow(ax, (1.22, high), (1.27, high), RED)
    arrow(ax, (2.24, high), (2.42, high), RED)
    arrow(ax, (2.9, high - BOX / 2), (2.9, low + BOX / 2), RED)
    label(ax, 0.15, low, 'x')
    arrow(ax, (0.25, low), (0.5, low))
    box(ax, 1.1, low, 'convolution', GRAY, 1.15)
    arrow(ax, (1.69, low), (2.2, low))
    box(ax, 2.9, low, 'BN with γ·v, β·v', GRAY, 1.4)
    arrow(ax, (3.61, low), (3.85, low))
    arrow(ax, (4.0, 1.0), (4.5, 1.0), RED)
    label(ax, 4.25, 1.16, 'fold', RED)
    label(ax, 4.65, low, 'x')
    arrow(ax, (4.75, low), (4.9, low))
    box(ax, 5.5, low, 'convolution', GRAY, 1.15)
    arrow(ax, (6.08, low), (6.25, low))
    box(ax, 6.6, low, 'BN', GRAY, 0.65)
    arrow(ax, (6.93, low), (7.12, low))
    return figure


def draw_removal() -> Figure:
    """Draw attention whose values become constants of a layer."""
    figure, ax = canvas()
    label(ax, 1.9, HEIGHT - 0.12, 'trained')
    label(ax, 6.0, HEIGHT - 0.12, 'deployed')
    low, high = 0.55, 1.45
    label(ax, 0.15, low, 'x')
    arrow(ax, (0.25, low), (0.45, low))
    box(ax, 1.05, low, 'convolution', GRAY, 1.15)
    arrow(ax, (1.64, low), (2.7, low))
    arrow(ax, (1.95, low), (1.95, high - BOX / 2), RED)
    box(ax, 2.2, high, 'attention', RED, 1.1)
    arrow(ax, (2.78, high - BOX / 2), (2.78, low + 0.1), RED)
    label(ax, 2.78, low, '×', size=14)
    arrow(ax, (2.88, low), (3.6, low))
    arrow(ax, (3.85, 1.0), (4.5, 1.0), RED)
    label(ax, 4.17, 1.24, 'average,\ndistill, fold', RED)
    label(ax, 4.65, low, 'x')
    arrow(ax, (4.75, low), (4.95, low))
    box(ax, 5.85, low, 'convolution with W·v', GRAY, 1.75)
    arrow(ax, (6.74, low), (7.1, low))
    return figure


def pictures() -> dict[str, Figure]:
    """Draw all pictures: card -> figure."""
    return {
        'asr': draw_asr(),
        'removal': draw_removal(),
        **{name: draw_branches(*parts) for name, parts in BRANCHES.items()},
        **{name: draw_attention(*parts) for name, parts in ATTENTION.items()},
    }


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1] / 'cards', help='folder')
    out = parser.parse_args().out
    # Text stays text, and every run writes the same file: no date, and no random identifiers.
    matplotlib.rcParams.update({'svg.hashsalt': 'mmasr', 'svg.fonttype': 'none'})
    for name, figure in pictures().items():
        figure.savefig(out / f'{name}.svg', transparent=True, metadata={'Date': None})


if __name__ == '__main__':
    main()
