"""Train configs with several seeds each, and compare the results.

Example: python tools/sweep.py configs/digits/resnet20{,_se}.py --seeds 5
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.errors import InputError, exit_on_input_error, shortened
from mmasr.experiments.sweep import (
    Run,
    by_config,
    by_setting,
    draw_sweep,
    estimate,
    mean_and_std,
    paired_difference,
    sweep,
)
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
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='number of trainings at a time, each on its own GPU if there are several (default: 1)',
    )
    parser.add_argument(
        '--estimate',
        action='store_true',
        help='before the trainings, time some iterations of each config and print how long all will take',
    )
    parser.add_argument(
        '--metrics', nargs='+', default=[], help='metrics of the table (default: the main metric)'
    )
    parser.add_argument(
        '--out',
        default='work_dirs/sweep',
        help='folder for the trainings, sweep.json, sweep.md and sweep.png (default: %(default)s)',
    )
    return parser.parse_args()


def duration(found: dict[tuple[str, str], tuple[float, int]], jobs: int) -> str:
    """Describe the duration of a sweep.

    Args:
        found (dict[tuple[str, str], tuple[float, int]]): See :func:`mmasr.experiments.sweep.estimate`.
        jobs (int): Number of trainings at a time.

    Returns:
        str: A sentence.
    """
    hours = [seconds / 3600 for seconds, _ in found.values()]
    count = sum(remaining for _, remaining in found.values())
    total = sum(seconds * remaining for seconds, remaining in found.values()) / 3600
    return (
        f'about {total / min(jobs, max(count, 1)):.2g} hours without validation: {count} trainings of '
        f'{min(hours):.2g} to {max(hours):.2g} hours, {jobs} at a time'
    )


def result_table(runs: Sequence[Run], metrics: Sequence[str], seeds: int) -> Table:
    """Return a table with a row for each config.

    Args:
        runs (Sequence[Run]): All runs.
        metrics (Sequence[str]): Names of metrics; empty for the main one.
        seeds (int): Number of seeds.

    Returns:
        Table: The table.

    Raises:
        InputError: If a metric does not exist.
    """
    known = list(runs[0].metrics)
    if unknown := [name for name in metrics if name not in known]:
        raise InputError(f'`metrics` {shortened(unknown)}: the trainings have {", ".join(known)}')
    first = by_setting(next(iter(by_config(runs).values())))
    compares = seeds > 1 and len(by_config(runs)) > 1
    columns = [(setting, metric) for metric in metrics or [runs[0].main] for setting in first]
    shown = {setting: setting if len(first) > 1 else '' for setting in first}
    titles = [f'{shown[setting]} {metric}, mean ± std of {seeds}'.strip() for setting, metric in columns]
    if compares:
        differences = 'minus the first config, 95 % interval'
        titles += [
            ' '.join(filter(None, [shown[setting], metric if len(metrics) > 1 else '', differences]))
            for setting, metric in columns
        ]
    table = Table('config', 'parameters', *titles, box=MARKDOWN)
    for name, group in by_config(runs).items():
        parts = by_setting(group)
        cells = ['{:.4g} ± {:.2g}'.format(*mean_and_std(parts[s], metric)) for s, metric in columns]
        if compares:
            cells += [
                ''
                if parts == first
                else '{:+.2g} ± {:.2g}'.format(*paired_difference(parts[s], first[s], metric))
                for s, metric in columns
            ]
        table.add_row(name, f'{group[0].parameters:,}', *cells)
    return table


def main() -> None:
    args = parse_args()
    console = Console(stderr=True)
    settings = args.settings or [{}]
    options = args.configs, args.seeds, args.out, settings
    if args.estimate:
        console.print(duration(estimate(*options), args.jobs))
    runs = []
    total = len(args.configs) * len(settings) * max(args.seeds, 1)
    for run in track(sweep(*options, args.jobs), 'training', total, console=console):
        name = ', '.join(filter(None, [run.config, run.setting if len(settings) > 1 else '']))
        console.print(f'{name}, seed {run.seed}: {run.main} {run.value:.4g}')
        runs.append(run)
    out = Path(args.out)
    (out / 'sweep.json').write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    table = result_table(runs, args.metrics, args.seeds)
    with open(out / 'sweep.md', 'w', encoding='utf-8') as file:
        Console(file=file, width=1000).print(table)
    draw_sweep(runs).savefig(out / 'sweep.png')
    Console().print(table)
    print(f'wrote sweep.json, sweep.md and sweep.png to {out}')


if __name__ == '__main__':
    exit_on_input_error(main)
