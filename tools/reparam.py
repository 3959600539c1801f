"""Fold the re-parameterization of a checkpoint into plain layers, for deployment.

Example: python tools/reparam.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.deploy.compare import differences_table
from mmasr.deploy.remove_attention import Removal
from mmasr.deploy.reparameterize import Report, reparameterize
from mmasr.errors import InputError, exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_checkpoint, add_output
from mmasr.openmmlab.evaluation import to_percentage_points
from mmasr.stripes.report import attention_table


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
        help='also replace attention that depends on its input by constants, and fold these. This is not '
        'exact, so the metrics before and after are measured',
    )
    parser.add_argument(
        '--calibrate',
        dest='images',
        type=int,
        metavar='N',
        help='number of training images, without labels (default: 1000)',
    )
    parser.add_argument(
        '--distill',
        dest='epochs',
        type=int,
        nargs='?',
        const=Removal.epochs,
        metavar='EPOCHS',
        help='epochs that the constants are trained for, to reproduce the outputs (default: 5)',
    )
    parser.add_argument(
        '--distill-weights',
        dest='weights',
        action='store_const',
        const=True,
        help='train all weights for as many epochs, too; needs thousands of images',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        metavar='SHARE',
        help='largest share of the decisions, or of the variance of other outputs, that may change; `inf` '
        'removes everything that can be removed (default: 0.02)',
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help='remove as much as possible without losing more than this many percentage points of the main '
        'metric, in place of --tolerance',
    )
    return parser.parse_args()


def removal(args: argparse.Namespace) -> Removal | None:
    """Return how to remove attention that depends on its input; None without --fold-attention.

    Raises:
        InputError: If an option for this is given without --fold-attention, or has an unusable value.
    """
    names = [field.name for field in dataclasses.fields(Removal)]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.fold_attention:
        return Removal(**options)
    if options:
        raise InputError(f'`{next(iter(options))}` needs `fold_attention`')
    return None


def show(report: Report) -> None:
    """Print what was folded, and the differences of the outputs."""
    mebibytes = [size / 2**20 for size in report.bytes]
    table = Table('', 'trained', 'deployed', title='Re-parameterized')
    for kind, count in Counter(report.folded.values()).items():
        table.add_row(printable(f'hosts with {kind}'), str(count), '0')
    if report.merged:
        table.add_row('modules with branches', str(len(report.merged)), '0')
    if report.attention:
        attention = report.attention.report
        staying = len(attention.modules) - len(attention.removed)
        table.add_row('modules with attention', str(len(attention.modules)), str(staying))
    table.add_row('parameters', *(f'{count:,}' for count in report.parameters))
    table.add_row('checkpoint, MiB', *(f'{size:.1f}' for size in mebibytes))
    console = Console(markup=False)
    if report.folded or report.merged:
        console.print(folded_table(report), differences_table(report.differences, report.bound))
    console.print(table)
    if worst := report.worst_layer:
        where = f'channel {worst.channel} of {worst.name}'
        line = f'folded layers, compared one by one: at most {worst.relative:.1e} apart, in {where}'
        console.print(printable(line), soft_wrap=True)
    if report.attention:
        show_attention(console, report)
    for line in config_lines(report):
        console.print(printable(line), soft_wrap=True)
    if report.ours:
        kinds = ', '.join(f'{count} {kind}' for kind, count in Counter(report.ours.values()).items())
        console.print(
            f'layers of mmasr that remain, for which the config imports it: {kinds}', soft_wrap=True
        )
    wrote = f'{report.seconds:.1f} s; wrote {report.checkpoint} and {report.config}'
    console.print(printable(wrote), soft_wrap=True)


def config_lines(report: Report) -> Iterator[str]:
    """Yield what the deployed config has, keeps and leaves out."""
    if report.config_changes:
        yield f'the deployed config differs from the trained one in {", ".join(report.config_changes)}'
    for name, reason in report.stays.items():
        yield f'{name} keeps its branches: {reason}'
    for reason in dict.fromkeys(report.left_out.values()):
        parts = ', '.join(name for name, why in report.left_out.items() if why == reason)
        yield f'left out of the config: {parts}: {reason}'


def folded_table(report: Report) -> Table:
    """Return a table of all folded layers."""
    folded = Table('layer', 'folded')
    for layer, attention in report.folded.items():
        folded.add_row(printable(layer), printable(attention))
    for module, kind in report.merged.items():
        folded.add_row(printable(module), printable(f'branches of {kind}'))
    return folded


def show_attention(console: Console, report: Report) -> None:
    """Print which attention was removed, and how that changed the outputs and the metrics.

    Args:
        console (Console): The console to print to.
        report (Report): A report with ``attention``.
    """
    attention = report.attention
    console.print(attention_table(attention.report))
    for reason, names in attention.report.staying().items():
        console.print(printable(f'{", ".join(names)}: stays: {reason}'), soft_wrap=True)
    console.print(printable(attention.report.summary()), soft_wrap=True)
    metrics = Table(
        'metric', 'before', 'after', 'points', title='Test data, before and after attention was removed'
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
    show(reparameterize(*options, removal(args), track))


if __name__ == '__main__':
    exit_on_input_error(main, images='calibrate', epochs='distill', weights='distill_weights')
