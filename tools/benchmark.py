"""Measure the cost of attention and ASR, or of convolutions with branches.

Examples:
    python tools/benchmark.py configs/mask_rcnn_r50.py --attention SE ECA
    python tools/benchmark.py --model torchvision:resnet18 --convs OREPA OfflineOREPA DBB
    python tools/benchmark.py --model torchvision:resnet50 --launching

All variants are made from one network and measured in one run: the plain network; attention κ; ASR(κ) in
training form, in the paper's form (which multiplies the feature map by the scale) and deployed; ASR(κ) + κ;
convolutions with branches in training form and deployed, and OREPA also as its authors compute it. They take
turns in every round. The tables show ratios to the plain network within a round: the median and the 10-90 %
range.

With --launching, all variants are one sixteenth as wide. What remains is the CPU time of Python, autograd and
launching operators, which a GPU waits for when it has few images.
"""

import argparse
import copy
import dataclasses
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from mmasr.attention import ATTENTIONS
from mmasr.errors import InputError, exit_on_input_error, with_source
from mmasr.experiments.benchmark.convolutions import convolution_types, convolution_variants, parse_spec
from mmasr.experiments.benchmark.launching import LaunchCost, measure_launching, narrow
from mmasr.experiments.benchmark.machine import describe_machine
from mmasr.experiments.benchmark.measure import Cost, measure
from mmasr.experiments.benchmark.network import config_model, random_input, torchvision_model
from mmasr.experiments.benchmark.picture import draw_growth, draw_speed
from mmasr.experiments.benchmark.tables import launching_tables, markdown_tables
from mmasr.experiments.benchmark.variants import attention_variants
from mmasr.experiments.benchmark.workload import Workload, check_runs, image_workload, openmmlab_workload
from mmasr.processes import join_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        'config', nargs='?', help='config of a detector or classifier; ASR in it is folded first'
    )
    source.add_argument(
        '--model', metavar='torchvision:NAME', help='a torchvision classifier, such as torchvision:resnet50'
    )
    parser.add_argument(
        '--part',
        choices=['whole', 'backbone'],
        default='whole',
        help="part of the config's network to measure (default: whole)",
    )
    parser.add_argument(
        '--layer',
        metavar='NAME',
        help='measure one layer or stage alone, on a random feature map; not with a whole config',
    )
    parser.add_argument(
        '--attention',
        nargs='+',
        metavar='κ',
        help=f'one or more of {", ".join(sorted(ATTENTIONS))} (default: SE; none with --convs)',
    )
    parser.add_argument(
        '--convs',
        nargs='+',
        default=[],
        metavar='TYPE',
        help=f'one or more of {", ".join(convolution_types())}; with options: XVolution,branch=sa',
    )
    parser.add_argument(
        '--delta',
        type=_positive,
        nargs='+',
        default=[1],
        help='numbers δ of attention modules in an ASR (default: 1)',
    )
    parser.add_argument(
        '--launching',
        action='store_true',
        help='measure only what launching operators costs the CPU: a narrow network and a small image',
    )
    parser.add_argument(
        '--batch',
        type=_positive,
        nargs='+',
        help='batch sizes, one table each (default: 8; with --launching 1)',
    )
    parser.add_argument(
        '--size',
        type=_positive,
        nargs='+',
        help='image side, or height and width, in pixels (default: 224; with --launching 64)',
    )
    parser.add_argument(
        '--sides',
        type=_positive,
        nargs='+',
        default=[],
        help='image sides in pixels, one table each; --picture then shows how the cost grows',
    )
    parser.add_argument(
        '--rounds', type=_positive, help='number of rounds (default: 20; with --launching 100)'
    )
    parser.add_argument('--device', help='default: cuda if there is a GPU; with --launching cpu')
    parser.add_argument(
        '--threads',
        type=_positive,
        help="number of CPU threads (default: torch's choice; with --launching 1)",
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument('--channels-last', action='store_true', help='use the memory format channels_last')
    parser.add_argument(
        '--compile', action='store_true', help='compile the network (the backbone of a detector)'
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write all measurements')
    parser.add_argument(
        '--picture',
        type=Path,
        metavar='FILE.png',
        help='also draw speed against parameters; with --sides, cost against image side',
    )
    args = parser.parse_args()
    args.attention = args.attention or ([] if args.convs else ['SE'])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    defaults = {'batch': [8], 'size': [224], 'rounds': 20, 'device': device}
    if args.launching:
        defaults = {'batch': [1], 'size': [64], 'rounds': 100, 'device': 'cpu', 'threads': 1}
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name) or value)
    return args


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return int(text)


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is built.

    Raises:
        InputError: If an argument is wrong, or does not go with another one.
    """
    if unknown := [name for name in args.attention if name not in ATTENTIONS]:
        raise InputError(
            f'--attention {" ".join(unknown)}: unknown; known are {", ".join(sorted(ATTENTIONS))}'
        )
    try:
        for text in args.convs:
            parse_spec(text)
    except InputError as error:
        raise InputError(f'--convs {error}') from error
    if args.launching:
        _check_launching(args)
    _check_device(args.device)
    if len(args.size) > 2:
        raise InputError(f'--size takes a side, or height and width, not {len(args.size)} numbers')
    _check_outputs(args)
    if args.layer and args.config and args.part == 'whole':
        raise InputError('--layer needs --model or --part backbone')
    if args.sides and len(args.batch) > 1:
        raise InputError('--sides needs a single --batch')


def _check_launching(args: argparse.Namespace) -> None:
    """Check that the other arguments go with --launching."""
    for name in ('layer', 'sides', 'amp', 'channels_last', 'compile', 'picture'):
        if getattr(args, name):
            raise InputError(f'--{name.replace("_", "-")} does not go with --launching')
    if args.device != 'cpu':
        raise InputError(f'--device {args.device}: --launching measures the CPU')
    if args.config and args.part == 'whole':
        raise InputError('--launching needs --model or --part backbone')


def _check_device(name: str) -> None:
    """Check that a device can be measured here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f'--device {name}: {error}'.splitlines()[0]) from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise InputError(f'--device {name}: torch finds no GPU; omit --device to measure on the CPU')
    if device.type not in ('cpu', 'cuda'):
        raise InputError(f'--device {name}: only cpu and cuda can be measured')


def _check_outputs(args: argparse.Namespace) -> None:
    """Check that the files can be written, and that the picture can be drawn."""
    for option, path in (('--out', args.out), ('--picture', args.picture)):
        if path and path.exists():
            raise InputError(f'{option} {path}: already exists; name another file')
        if path and not os.access(path.parent, os.W_OK):
            raise InputError(f"{option} {path}: can't write to {path.parent}")
    if args.picture and args.convs and not args.sides:
        raise InputError('--picture draws attention, or growth with --sides; pass --sides, or omit --convs')
    if args.picture and not find_spec('matplotlib'):
        raise InputError('--picture needs matplotlib: pip install matplotlib')


def _progress(rounds: Iterable, description: str) -> Iterable:
    """Show a progress bar if rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return rounds
    return track(rounds, description, console=Console(stderr=True), transient=True)


def _build_variants(
    args: argparse.Namespace, plain: nn.Module, inputs: torch.Tensor
) -> tuple[dict[str, nn.Module], Workload]:
    """Return the networks to measure, and their workload."""
    if args.layer:
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        inputs = random_input(plain, args.layer, inputs).contiguous(memory_format=layout)
    if args.launching:
        plain = narrow(copy.deepcopy(plain), inputs)
    whole = args.config and args.part == 'whole'
    workload = openmmlab_workload(plain, inputs) if whole else image_workload(inputs)
    models = attention_variants(plain, args.attention, args.delta) if args.attention else {}
    models |= convolution_variants(plain, args.convs) if args.convs else {}
    if args.layer:
        models = {name: model.get_submodule(args.layer) for name, model in models.items()}
    check_runs(models['plain'], workload)
    return models, workload


def _write_results(
    args: argparse.Namespace,
    results: dict[int, list[Cost] | list[LaunchCost]],
    settings: dict,
    machine: dict,
    source: str,
) -> None:
    """Write the measurements and the picture."""
    try:
        if args.out:
            costs = {key: [dataclasses.asdict(cost) for cost in costs] for key, costs in results.items()}
            key = 'sides' if args.sides else 'batches'
            content = {'machine': machine, 'settings': settings, key: costs}
            args.out.write_text(json.dumps(content, indent=1, default=str))
        if args.picture:
            if args.sides:
                figure = draw_growth(results, *args.batch, source)
            else:
                figure = draw_speed(results, args.attention, source)
            figure.savefig(args.picture)
    except (OSError, ValueError) as error:  # such as a full disk, or an image format unknown to matplotlib
        raise InputError(f"can't write the results: {error}") from error


def main() -> None:
    args = parse_args()
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rank, device = join_processes(args.device)
    source = ', '.join(filter(None, [args.model or f'{args.config}, {args.part}', args.layer]))
    plain = torchvision_model(args.model) if args.model else config_model(args.config, args.part)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    plain = plain.to(device, memory_format=layout)
    size = args.size if len(args.size) == 2 else args.size * 2
    shapes = {side: (*args.batch, side, side) for side in args.sides} or {
        batch: (batch, *size) for batch in args.batch
    }
    track = _progress if rank == 0 else (lambda rounds, description: rounds)
    results = {}
    for key, (batch, *size) in shapes.items():
        images = torch.randn(batch, 3, *size, device=device).contiguous(memory_format=layout)
        with with_source(source):
            models, workload = _build_variants(args, plain, images)
        if args.launching:
            results[key] = measure_launching(models, workload, args.rounds, track)
            tables = launching_tables(results[key])
        else:
            results[key] = measure(models, workload, args.rounds, args.amp, args.compile, track)
            tables = markdown_tables(results[key], batch)
        if rank == 0:
            kind = 'feature map' if args.layer else 'images'
            shape = ' x '.join(map(str, workload.inputs.shape))
            print(f'\n{source}, {kind} {shape}, {args.rounds} rounds\n')
            print(tables)
    if rank:
        return
    machine = describe_machine(device)
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    settings = vars(args) | {'device': device, 'threads': torch.get_num_threads(), 'processes': processes}
    shown = {key: value for key, value in settings.items() if value and key not in ('out', 'picture')}
    print('\n' + ', '.join(f'{key} {value}' for key, value in machine.items()))
    print(', '.join(f'{key} {value}' for key, value in shown.items()))
    _write_results(args, results, settings, machine, source)


if __name__ == '__main__':
    exit_on_input_error(main)
