"""Compare ways to remove attention from trained checkpoints, on the data of their configs.

Example: python tools/removal.py work_dirs/resnet20_se/epoch_30.pth --curves
"""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.errors import InputError, exit_on_input_error
from mmasr.experiments.removal import Comparison, compare_removals, draw_curves


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoints', nargs='+', help='checkpoints of trainings with attention')
    parser.add_argument(
        '--images', type=int, default=1000, help='number of training images, without labels (default: 1000)'
    )
    parser.add_argument('--distill', type=int, default=5, metavar='EPOCHS', help='epochs (default: 5)')
    parser.add_argument(
        '--curves', action='store_true', help='also evaluate every number of removed modules, and draw it'
    )
    parser.add_argument('--rounds', type=int, default=30, help='rounds of timing (default: 30)')
    parser.add_argument(
        '--out',
        default='work_dirs/removal',
        help='folder for removal.json and removal.png (default: %(default)s)',
    )
    return parser.parse_args()


def tables(comparisons: list[Comparison]) -> list[Table]:
    """Return a table of the metrics and one of the latency."""
    variants = list(comparisons[0].variants)
    metrics = Table('checkpoint', 'modules', *variants, 'removed by default', 'changed', box=MARKDOWN)
    latency = Table('latency, without ÷ with', *comparisons[0].latency, box=MARKDOWN)
    for found in comparisons:
        default = found.variants['default']
        metrics.add_row(
            found.checkpoint,
            str(found.modules),
            *(f'{found.variants[name].value:.4g}' for name in variants),
            str(default.removed),
            f'{default.change:.2%}',
        )
        latency.add_row(found.checkpoint, *(f'{middle:.3f}' for _, middle, _ in found.latency.values()))
    return [metrics, latency]


def main() -> None:
    args = parse_args()
    if args.curves and args.rounds < 1:
        raise InputError('`curves` draws the latency, too, and needs at least one of `rounds`')
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for checkpoint in args.checkpoints:
        comparisons.append(
            compare_removals(checkpoint, args.images, args.distill, args.curves, args.rounds, track)
        )
        (out / 'removal.json').write_text(json.dumps([dataclasses.asdict(c) for c in comparisons], indent=1))
    for table in tables(comparisons):
        Console(width=200).print(table)
    if args.curves:
        draw_curves(comparisons).savefig(out / 'removal.png')
    print(f'wrote {"removal.json and removal.png" if args.curves else "removal.json"} to {out}')


if __name__ == '__main__':
    exit_on_input_error(main, epochs='distill')
