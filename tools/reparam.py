"""Fold the re-parameterization of a checkpoint into plain layers, for deployment.

Example: python tools/reparam.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth
"""

import argparse
from collections import Counter

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.deploy.calibrate import Calibration, to_percentage_points
from mmasr.deploy.compare import differences_table
from mmasr.deploy.reparameterize import Report, reparameterize
from mmasr.errors import InputError, exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_checkpoint, add_output
from mmasr.stripes.report import stripes_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(
        parser,
        'checkpoint of a training; or weights without a config, together with --config',
        'config of the training',
    )
    add_output(
        parser,
        'PATH.pth',
        'deployed checkpoint; its config is written next to it (default: <name>_deploy.pth)',
    )
    parser.add_argument(
        '--fold-attention',
        action='store_true',
        help='also replace attention that depends on its input by its mean, and fold that. This is not '
        'exact, so the metrics before and after are measured',
    )
    parser.add_argument(
        '--calibrate', type=int, metavar='N', help='number of training images for the mean (default: 200)'
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help='fold as many modules as possible without losing more than this many percentage points of the '
        'main metric, the steadiest modules first (default: fold all)',
    )
    return parser.parse_args()


def calibration(args: argparse.Namespace) -> Calibration | None:
    """Return how to fold attention that depends on its input; None without --fold-attention.

    Raises:
        InputError: If an option for this is given without --fold-attention, or has an unusable value.
    """
    if not args.fold_attention:
        if args.calibrate is not None or args.max_drop is not None:
            raise InputError('--calibrate and --max-drop need --fold-attention')
        return None
    options = {'images': args.calibrate, 'max_drop': args.max_drop}
    return Calibration(**{name: value for name, value in options.items() if value is not None})


def show(report: Report) -> None:
    """Print what was folded, and the differences of the outputs."""
    mebibytes = [size / 2**20 for size in report.bytes]
    table = Table('', 'trained', 'deployed', title='Re-parameterized')
    for kind, count in Counter(report.folded.values()).items():
        table.add_row(printable(f'hosts with {kind}'), str(count), '0')
    if report.merged:
        table.add_row('modules with branches', str(len(report.merged)), '0')
    if report.attention:
        staying = len(report.attention.staying)
        table.add_row('modules with attention', str(len(report.means) + staying), str(staying))
    table.add_row('parameters', *(f'{count:,}' for count in report.parameters))
    table.add_row('checkpoint, MiB', *(f'{size:.1f}' for size in mebibytes))
    console = Console(markup=False)
    console.print(folded_table(report), differences_table(report.differences, report.bound), table)
    if worst := report.worst_layer:
        where = f'channel {worst.channel} of {worst.name}'
        line = f'folded layers, compared one by one: at most {worst.relative:.1e} apart, in {where}'
        console.print(printable(line), soft_wrap=True)
    if report.config_changes:
        line = f'the deployed config differs from the trained one in {", ".join(report.config_changes)}'
        console.print(printable(line), soft_wrap=True)
    if report.attention:
        show_attention(console, report)
    for reason in dict.fromkeys(report.left_out.values()):
        parts = ', '.join(name for name, why in report.left_out.items() if why == reason)
        console.print(printable(f'left out of the config: {parts}: {reason}'), soft_wrap=True)
    if report.ours:
        kinds = ', '.join(f'{count} {kind}' for kind, count in Counter(report.ours.values()).items())
        console.print(
            f'layers of mmasr that remain, for which the config imports it: {kinds}', soft_wrap=True
        )
    wrote = f'{report.seconds:.1f} s; wrote {report.checkpoint} and {report.config}'
    console.print(printable(wrote), soft_wrap=True)


def folded_table(report: Report) -> Table:
    """Return a table of all folded layers."""
    folded = Table('layer', 'folded')
    for layer, attention in report.folded.items():
        folded.add_row(printable(layer), printable(attention))
    for module, kind in report.merged.items():
        folded.add_row(printable(module), printable(f'branches of {kind}'))
    for module, host in report.means.items():
        folded.add_row(
            printable(module), printable(f'mean of {report.attention.stripes[module].kind}, into {host}')
        )
    return folded


def show_attention(console: Console, report: Report) -> None:
    """Print how folding attention that depends on its input changed the metrics.

    Args:
        console (Console): The console to print to.
        report (Report): A report with ``attention``.
    """
    attention = report.attention
    console.print(stripes_table(attention.stripes.values(), 'Attention over the calibration images'))
    for name, reason in attention.staying.items():
        console.print(printable(f'{name} stays: {reason}'), soft_wrap=True)
    metrics = Table(
        'metric', 'before', 'after', 'points', title='Test data, before and after attention was folded'
    )
    for name, before in attention.before.items():
        after = report.after.get(name, 0)  # without detections there is no metric
        style = 'bold' if name == attention.metric else None
        metrics.add_row(
            printable(name),
            f'{before:.4f}',
            f'{after:.4f}',
            f'{to_percentage_points(name, after - before):+.2f}',
            style=style,
        )
    console.print(metrics)


def main() -> None:
    args = parse_args()
    options = args.checkpoint, args.config, args.out, args.force, args.trust_imports
    show(reparameterize(*options, calibration(args), track))


if __name__ == '__main__':
    exit_on_input_error(main, images='calibrate')
