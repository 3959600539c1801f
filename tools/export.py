"""Export a deployed network to ONNX, and check it with ONNX Runtime.

Example: python tools/export.py epoch_12_deploy.pth --int8
"""

import argparse
import dataclasses

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmasr.deploy.compare import differences_table
from mmasr.deploy.export import OPSET, Export, export
from mmasr.deploy.quantize import Int8, Quantized
from mmasr.errors import InputError, exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_checkpoint, add_output
from mmasr.openmmlab.evaluation import to_percentage_points

#: Number of layers whose noise is shown.
LAYERS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(
        parser,
        'checkpoint from tools/reparam.py, or another one without re-parameterization',
        'config of the checkpoint; with --int8 also the config of the training, for its data',
    )
    add_output(
        parser,
        'PATH.onnx',
        'file to write (default: <name>.onnx next to the checkpoint); with --int8 also <name>_int8.onnx',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('HEIGHT', 'WIDTH'),
        help='image size in pixels, for a network with a fixed size (default: 224 224)',
    )
    parser.add_argument(
        '--int8',
        action='store_true',
        help='also write an int8 file, after evaluating both on the test data',
    )
    parser.add_argument(
        '--calibrate',
        dest='images',
        type=int,
        metavar='N',
        help='number of training images, without labels, to calibrate int8 with (default: 300)',
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help='write nothing if int8 loses more than this many percentage points of the main metric',
    )
    parser.add_argument(
        '--keep-float',
        nargs='+',
        metavar='MODULE',
        help='modules whose layers stay in float, such as backbone.conv1',
    )
    return parser.parse_args()


def quantization(args: argparse.Namespace) -> Int8 | None:
    """Return how to quantize; None without --int8.

    Raises:
        InputError: If an option for this is given without --int8, or has an unusable value.
    """
    names = [field.name for field in dataclasses.fields(Int8)]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.int8:
        return Int8(**options)
    if options:
        raise InputError(f'`{next(iter(options))}` needs `int8`')
    return None


def show(report: Export) -> None:
    """Print what was exported, and the differences of the outputs."""
    console = Console(markup=False)
    console.print(differences_table(report.differences, report.bound))
    if report.quantized:
        show_quantized(console, report.quantized)
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
    files = ' and '.join(str(path) for path in (report.path, report.int8_path) if path)
    lines.append(f'{report.seconds:.1f} s; wrote {files}, {report.bytes / 2**20:.1f} MiB')
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def show_quantized(console: Console, found: Quantized) -> None:
    """Print metrics, sizes and latency of both files, and the layers that lose most.

    Args:
        console (Console): The console to print to.
        found (Quantized): The measurements.
    """
    table = Table('', 'float', 'int8', 'change', title='Test data, computed by ONNX Runtime')
    for name, before in found.before.items():
        after = found.after.get(name, 0.0)  # without detections there is no metric
        points = f'{to_percentage_points(name, after - before):+.2f} points'
        style = 'bold' if name == found.metric else None
        table.add_row(printable(name), f'{before:.4f}', f'{after:.4f}', points, style=style)
    before, after = (size / 2**20 for size in found.bytes)
    table.add_row('size, MiB', f'{before:.2f}', f'{after:.2f}', f'× {after / before:.2f}')
    low, middle, high = found.ratio
    table.add_row(
        'latency, ms',
        *(f'{1000 * seconds:.2f}' for seconds in found.seconds),
        f'× {middle:.2f} ({low:.2f} to {high:.2f})',
    )
    console.print(table)
    noise = Table(
        'layer', 'weights', 'inputs', 'outputs', title='Noise relative to the values; most added first'
    )
    for layer in found.noise[:LAYERS]:
        shares = (f'{share:.1%}' for share in (layer.weights, layer.inputs, layer.outputs))
        noise.add_row(printable(layer.layer), *shares)
    console.print(noise)
    line = f'calibrated with {found.images} training images; latency of one image of {found.size[0]} x '
    line += f'{found.size[1]}{"; in float: " if found.kept else ""}{", ".join(found.kept)}'
    console.print(printable(line), soft_wrap=True)


def main() -> None:
    args = parse_args()
    options = args.checkpoint, args.config, args.out, args.force, args.trust_imports, args.size
    show(export(*options, quantization(args), track))


if __name__ == '__main__':
    exit_on_input_error(main, images='calibrate')
