"""Export a deployed network to ONNX, and check it with ONNX Runtime.

Example: python tools/export.py epoch_12_deploy.pth
"""

import argparse

from rich.console import Console

from mmasr.deploy.compare import differences_table
from mmasr.deploy.export import OPSET, Export, export
from mmasr.errors import exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_checkpoint, add_output


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(
        parser,
        'checkpoint from tools/reparam.py, or another one without re-parameterization',
        'config of the checkpoint',
    )
    add_output(parser, 'PATH.onnx', 'file to write (default: <name>.onnx next to the checkpoint)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('HEIGHT', 'WIDTH'),
        help='image size in pixels, for a network with a fixed size (default: 224 224)',
    )
    return parser.parse_args()


def show(report: Export) -> None:
    """Print what was exported, and the differences of the outputs."""
    console = Console(markup=False)
    console.print(differences_table(report.differences, report.bound))
    checked = ', '.join('x'.join(map(str, shape)) for shape in report.inputs)
    channels, *size = report.inputs[0][1:]
    axes = ['batch' if 'batch' in report.dynamic else 1, channels]
    axes += ['height', 'width'] if 'height' in report.dynamic else size
    lines = [
        f'{report.network}, opset {OPSET}; ONNX Runtime and torch compared on {checked}',
        f'input: {" x ".join(map(str, axes))}, {report.preprocessing}; the graph does not include this',
    ]
    if report.fixed:
        lines.append(f'the other axes are fixed: {report.fixed}')
    if report.left_out:
        lines.append(f'not exported: {report.left_out}; MMDeploy exports whole detectors, see docs/deploy.md')
    lines.append(f'{report.seconds:.1f} s; wrote {report.path}, {report.bytes / 2**20:.1f} MiB')
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def main() -> None:
    args = parse_args()
    show(export(args.checkpoint, args.config, args.out, args.force, args.trust_imports, args.size))


if __name__ == '__main__':
    exit_on_input_error(main)
