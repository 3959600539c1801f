"""Compare int8 of trained checkpoints, on the data of their configs.

Example: python tools/quantization.py work_dirs/resnet20{,_orepa,_repvgg}/epoch_30.pth
"""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.errors import exit_on_input_error
from mmasr.experiments.quantization import Comparison, compare_int8, draw_ranges
from mmasr.openmmlab.evaluation import to_percentage_points


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoints', nargs='+', help='checkpoints, trained or deployed')
    parser.add_argument(
        '--calibrate',
        dest='images',
        type=int,
        default=300,
        metavar='N',
        help='number of training images, without labels (default: 300)',
    )
    parser.add_argument('--rounds', type=int, default=30, help='rounds of timing (default: 30)')
    parser.add_argument(
        '--out',
        default='work_dirs/quantization',
        help='folder for quantization.json and quantization.png (default: %(default)s)',
    )
    return parser.parse_args()


def result_table(comparisons: list[Comparison]) -> Table:
    """Return a table of the metrics, in percentage points, and of the latency."""
    table = Table('checkpoint', 'float', 'int8', 'int8 per tensor', 'latency, int8 ÷ float', box=MARKDOWN)
    for found in comparisons:
        values = (to_percentage_points(found.metric, value) for value in found.values.values())
        latency = f'{found.latency[1]:.2f}' if found.latency else ''
        table.add_row(found.checkpoint, *(f'{value:.2f}' for value in values), latency)
    return table


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for checkpoint in args.checkpoints:
        comparisons.append(compare_int8(checkpoint, args.images, args.rounds, track))
        text = json.dumps([dataclasses.asdict(comparison) for comparison in comparisons])
        (out / 'quantization.json').write_text(text)
    Console(width=200).print(result_table(comparisons))
    draw_ranges(comparisons).savefig(out / 'quantization.png')
    print(f'wrote quantization.json and quantization.png to {out}')


if __name__ == '__main__':
    exit_on_input_error(main, images='calibrate')
