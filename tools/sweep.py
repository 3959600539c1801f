"""Train configs with several seeds each, and compare the results.

Example: python tools/sweep.py configs/digits/resnet20{,_se}.py --seeds 5
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
from mmasr.experiments.sweep import by_config, by_setting, draw_sweep, mean_and_std, paired_difference, sweep
from mmasr.openmmlab.arguments import SeveralSettings


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds: 0, 1, ... (default: 5)')
    parser.add_argument(
        '--settings',
        nargs='+',
        action=SeveralSettings,
        default=[],
        metavar='KEY=VALUE',
        help='override settings of all configs; if repeated, train with each group of settings',
    )
    parser.add_argument('--jobs', type=int, default=1, help='number of trainings at a time (default: 1)')
    parser.add_argument(
        '--out',
        default='work_dirs/sweep',
        help='folder for the trainings, sweep.json and sweep.png (default: %(default)s)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console(stderr=True)
    runs = []
    settings = args.settings or [{}]
    total = len(args.configs) * len(settings) * max(args.seeds, 1)
    for run in track(
        sweep(args.configs, args.seeds, args.out, settings, args.jobs), 'training', total, console=console
    ):
        name = ', '.join(filter(None, [run.config, run.setting]))
        console.print(f'{name}, seed {run.seed}: {run.main} {run.value:.4g}')
        runs.append(run)
    columns = [
        f'{setting} {runs[0].main}, mean ± std of {args.seeds}'.strip() for setting in by_setting(runs)
    ]
    first = by_setting(next(iter(by_config(runs).values())))
    compares = args.seeds > 1 and len(args.configs) > 1
    if compares:
        columns += [f'{setting} minus the first config, 95 % interval'.strip() for setting in first]
    table = Table('config', 'parameters', *columns, box=MARKDOWN)
    for name, group in by_config(runs).items():
        parts = by_setting(group)
        cells = ['{:.4g} ± {:.2g}'.format(*mean_and_std(part)) for part in parts.values()]
        if compares:
            is_first = parts == first
            cells += [
                '' if is_first else '{:+.2g} ± {:.2g}'.format(*paired_difference(part, first[setting]))
                for setting, part in parts.items()
            ]
        table.add_row(name, f'{group[0].parameters:,}', *cells)
    Path(args.out, 'sweep.json').write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    draw_sweep(runs).savefig(Path(args.out, 'sweep.png'))
    Console().print(table)
    print(f'wrote sweep.json and sweep.png to {args.out}')


if __name__ == '__main__':
    exit_on_input_error(main)
