"""Draw the pictures of docs/benchmarks.md from its tables.

Example: python docs/_figures/benchmarks.py
"""

import re
from pathlib import Path

from mmasr.plots import GRAY, RED, SMALL, panels

DOCS = Path(__file__).parents[1]
PAGE = (DOCS / 'benchmarks.md').read_text()
SIDES = [64, 128, 256, 512]
BRANCHES = {
    'X-volution (PSSA)': 'PSSA',
    'X-volution (SA)': 'SA',
    'X-volution (involution)': 'involution',
    'global self-attention': 'global self-attention',
    'the same, fused': 'global self-attention, fused',
}


def table(start: str) -> dict[str, list[list[float]]]:
    """Return the first table after a text: row -> the numbers in each of its other cells."""
    lines = re.search(r'(?:^\|.*\n)+', PAGE[PAGE.index(start) :], re.M)[0].splitlines()[2:]
    rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)
    return {
        name: [[float(x) for x in re.findall(r'\d+\.\d+', cell)] for cell in cells] for name, *cells in rows
    }


def draw_cost():
    """Draw inference and training step of ResNet-50 with attention: medians, and ranges from 10 to 90 %."""
    rows = table('### Several attention modules')
    del rows['plain']
    names = sorted(rows, key=lambda name: (re.search('CBAM|ECA|SE', name)[0] != 'SE', 'CBAM' in name))
    figure, (axes,) = panels(5.5, 2.3, 1, 2, sharey=True)
    style = {'fmt': 'o', 'markersize': 3, 'linewidth': 1}
    for ax, column, title in zip(axes, (2, 3), ('an inference', 'a training step'), strict=True):
        for place, name in enumerate(names):
            middle, low, high = rows[name][column]
            color = RED if name.startswith('ASR') and 'form' not in name and '+' not in name else GRAY
            ax.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=color, **style)
        ax.axvline(1, color='0.8', linewidth=0.8, zorder=0)
        ax.set_xlabel(f'time of {title} ÷ plain network')
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure


def draw_growth():
    """Draw time and memory of stage 3 beyond the plain network against the image size."""
    start = 'Stage 3 alone shows how the cost grows'
    plain = re.search('plain takes (.*?) ms', PAGE[PAGE.index(start) :], re.DOTALL)[1]  # for each side
    plain = [float(x) for x in re.findall(r'\d+\.\d+', plain)]
    times, memory = table(start), table('| kept for backward, MiB beyond plain')
    figure, (axes,) = panels(5.5, 2.2, 1, 2)
    for number, (label, name) in enumerate(BRANCHES.items()):
        ratios = times.get(f'{name}, deployed', times[name])
        values = (
            [(ratio - 1) * base for (ratio,), base in zip(ratios, plain, strict=True)],
            [value for (value,) in memory[name]],
        )
        for ax, line in zip(axes, values, strict=True):
            ax.plot(SIDES, line, 'o-', color=f'C{number}', markersize=2.5, linewidth=1, label=label)
    titles = 'inference: milliseconds beyond plain', 'training step: MiB beyond plain'
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xscale='log', yscale='log', xlabel='side of the image, pixels', ylabel=title)
        ax.set_xticks(SIDES, map(str, SIDES))
        ax.minorticks_off()
        linear = [1.3 * ax.get_ylim()[0] * (side / SIDES[0]) ** 2 for side in SIDES]  # in the positions
        ax.plot(SIDES, linear, ':', color='0.6', linewidth=0.8, label='linear growth')
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc='outside right center', fontsize=SMALL, frameon=False)
    return figure


if __name__ == '__main__':
    draw_cost().savefig(DOCS / 'benchmarks.png')
    draw_growth().savefig(DOCS / 'benchmarks_xvolution.png')
