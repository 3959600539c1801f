"""Fold the ASR of a checkpoint into plain layers: tools/reparam.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth"""

import argparse

from rich.console import Console
from rich.table import Table

from mmasr.errors import exit_on_input_error
from mmasr.reparam import Report, reparameterize


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a training, or weights (then with --config)')
    parser.add_argument('--config', help='config it was trained with (default: the one in the checkpoint, read as data)')
    parser.add_argument(
        '--out', metavar='PATH.pth', help='the deployed checkpoint; its config goes beside it (default: <name>_deploy.pth)'
    )
    parser.add_argument('--force', action='store_true', help='replace the output files if they are there')
    parser.add_argument(
        '--trust-imports', action='store_true', help="import, and so run, any module that the checkpoint's own config asks for"
    )
    return parser.parse_args()


def show(report: Report) -> None:
    """Print what was folded and how far the outputs are apart."""
    mebibytes = [size / 2**20 for size in report.bytes]
    table = Table('', 'trained', 'deployed', title='Re-parameterized')
    table.add_row('hosts with ASR', str(len(report.folded)), '0')
    table.add_row('parameters', *(f'{count:,}' for count in report.parameters))
    table.add_row('checkpoint, MiB', *(f'{size:.1f}' for size in mebibytes))
    hosts = Table('host', 'folded')
    for host, attention in report.folded.items():
        hosts.add_row(host, attention)
    outputs = Table('output', 'largest difference', f'relative (bound {report.bound:.0e})')
    for difference in report.differences:
        outputs.add_row(difference.output, f'{difference.absolute:.1e}', f'{difference.relative:.1e}')
    console = Console()
    console.print(hosts, outputs, table)
    console.print(f'{report.seconds:.1f} s; wrote {report.checkpoint} and {report.config}', soft_wrap=True, markup=False)


def main() -> None:
    args = parse_args()
    show(reparameterize(args.checkpoint, args.config, args.out, args.force, args.trust_imports))


if __name__ == '__main__':
    exit_on_input_error(main)
