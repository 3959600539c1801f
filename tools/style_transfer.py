"""Compare normalizations in style transfer under batch noise: Fig. 5 of ASR's paper.

Example: python tools/style_transfer.py data/photographs --seeds 3

The networks are that of Johnson et al. with instance normalization, with BatchNorm, with noise in BatchNorm,
and with noise and ASR(SE). The control has no ASR, but starts from the scale that ASR starts from. A training
takes a few minutes on a CPU. Finished trainings are kept, and an interrupted one continues.
"""

import argparse
import dataclasses
import json
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import mean, stdev

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.errors import exit_on_input_error
from mmasr.experiments.style_images import draw_style, find_photographs, read_image
from mmasr.experiments.style_transfer import (
    NETWORKS,
    Data,
    Losses,
    Recipe,
    Run,
    draw_pictures,
    load_features,
    run_experiment,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('photographs', help='folder with photographs')
    parser.add_argument(
        '--held-out',
        nargs='+',
        metavar='FILE',
        help='photographs in the folder to evaluate on (default: every fifth one)',
    )
    parser.add_argument('--style', metavar='FILE', help='style image (default: one that is drawn)')
    parser.add_argument(
        '--features',
        nargs=2,
        default=['efficientnet_lite0', 'data/efficientnet_lite0.pth'],
        metavar=('NETWORK', 'WEIGHTS'),
        help='network for the losses, efficientnet_lite0 or vgg16, and its weights '
        '(default: efficientnet_lite0 data/efficientnet_lite0.pth)',
    )
    parser.add_argument(
        '--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS), help='networks (default: all)'
    )
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds: 0, 1, ... (default: 3)')
    parser.add_argument(
        '--size', type=int, default=192, help='shorter side of the photographs in pixels (default: 192)'
    )
    for name, text in (
        ('steps', 'training steps'),
        ('crop', 'side of the training crops in pixels'),
        ('channels', 'output channels of the first convolution'),
        ('lr', 'peak learning rate of Adam'),
        ('noise', 'standard deviation of the noise'),
        ('sites', 'regular expression for the normalizations with ASR'),
    ):
        default = getattr(Recipe, name)
        parser.add_argument(
            f'--{name}', type=type(default), default=default, help=f'{text} (default: {default})'
        )
    parser.add_argument(
        '--out',
        default='work_dirs/style_transfer',
        help='folder for the trainings and style_transfer.json, .md and .png (default: %(default)s)',
    )
    return parser.parse_args()


def result_table(runs: list[Run]) -> str:
    """Return a Markdown table of the losses."""
    seeds = len({run.seed for run in runs})
    statistics = f', mean ± std of {seeds}' if seeds > 1 else ''
    heads = (f'{loss} loss{statistics}' for loss in ('style', 'content'))
    table = Table('network', 'parameters', *heads, box=MARKDOWN)
    for name, title in NETWORKS.items():
        group = [run for run in runs if run.network == name]
        if group:
            table.add_row(title, f'{group[0].parameters:,}', *_cells([run.losses for run in group]))
        if folded := [run.folded for run in group if run.folded]:
            table.add_row(
                'the same, folded', f'{folded[0].parameters:,}', *_cells([one.losses for one in folded])
            )
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return '\n'.join(line.strip() for line in console.file.getvalue().splitlines() if line.strip())


def _cells(losses: list[Losses]) -> list[str]:
    found = []
    for name in ('style', 'content'):
        values = [getattr(one, name) for one in losses]
        deviation = f' ± {stdev(values):.3f}' if len(values) > 1 else ''
        found.append(f'{mean(values):.3f}{deviation}')
    return found


def main() -> None:
    args = parse_args()
    console = Console(stderr=True)
    paths = find_photographs(args.photographs, args.held_out)
    style = read_image(args.style, 256) if args.style else draw_style()
    train, held_out = ([read_image(path, args.size) for path in part] for part in paths)
    data = Data(train, held_out, style, load_features(*args.features))
    recipe = Recipe(
        args.steps, crop=args.crop, channels=args.channels, lr=args.lr, noise=args.noise, sites=args.sites
    )
    runs, pictures = [], {}
    bar = partial(track, console=console)
    for run, found in run_experiment(args.networks, args.seeds, data, args.out, recipe, bar):
        console.print(
            f'{NETWORKS[run.network]}, seed {run.seed}: style loss {run.losses.style:.3f}, content loss '
            f'{run.losses.content:.3f}'
        )
        runs.append(run)
        pictures.setdefault(NETWORKS[run.network], found)
    out = Path(args.out)
    text = result_table(runs)
    (out / 'style_transfer.md').write_text(f'{text}\n')
    (out / 'style_transfer.json').write_text(
        json.dumps(
            {
                'recipe': dataclasses.asdict(recipe),
                'held_out': [path.name for path in paths[1]],
                'runs': [dataclasses.asdict(run) for run in runs],
            },
            indent=1,
        )
    )
    draw_pictures(data, pictures).savefig(out / 'style_transfer.png')
    print(text)
    print(f'wrote style_transfer.json, style_transfer.md and style_transfer.png to {out}')


if __name__ == '__main__':
    exit_on_input_error(main)
