"""Train configs with several seeds each: tools/sweep.py configs/digits/resnet20{,_se}.py --seeds 5"""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.errors import exit_on_input_error
from mmasr.experiments.sweep import by_config, draw_sweep, spread, sweep


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds, from 0 on (default: 5)')
    parser.add_argument('--out', default='work_dirs/sweep', help='folder for the trainings, sweep.json and sweep.png')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console(stderr=True)
    runs = []
    total = len(args.configs) * max(args.seeds, 1)
    for run in track(sweep(args.configs, args.seeds, args.out), 'training', total, console=console):
        console.print(f'{run.config}, seed {run.seed}: {run.main} {run.value:.4g}')
        runs.append(run)
    table = Table('config', 'parameters', f'{runs[0].main}, mean ± deviation of {args.seeds}', box=MARKDOWN)
    for name, group in by_config(runs).items():
        table.add_row(name, f'{group[0].parameters:,}', '{:.4g} ± {:.2g}'.format(*spread(group)))
    Path(args.out, 'sweep.json').write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    draw_sweep(runs).savefig(Path(args.out, 'sweep.png'))
    Console().print(table)
    print(f'wrote sweep.json and sweep.png to {args.out}')


if __name__ == '__main__':
    exit_on_input_error(main)
