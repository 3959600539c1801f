"""What attention costs, with ASR and without: tools/benchmark.py configs/mask_rcnn_r50.py --attention SE ECA
What convolutions with branches cost: tools/benchmark.py --model torchvision:resnet18 --convs OREPA OfflineOREPA DBB

From one network, in one run: the plain network; attention κ, ASR(κ) in training form, in the paper's form (whose scale
multiplies the feature map) and deployed, and ASR(κ) + κ; convolutions in training form and deployed, OREPA also as its authors
compute it. All take turns within a round; ratios to the plain network are taken within a round, and their median and 10-90 %
range are shown.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch

from mmasr.attention import ATTENTIONS
from mmasr.core.attach import CONVOLUTIONS
from mmasr.errors import InputError, exit_on_input_error
from mmasr.experiments.benchmark.convolutions import convolutions, kind_and_options
from mmasr.experiments.benchmark.machine import machine
from mmasr.experiments.benchmark.measure import measure
from mmasr.experiments.benchmark.network import config_model, map_before, torchvision_model
from mmasr.experiments.benchmark.picture import draw_growth, draw_speed
from mmasr.experiments.benchmark.tables import tables
from mmasr.experiments.benchmark.variants import variants
from mmasr.experiments.benchmark.workload import annotated_images, images, try_out
from mmasr.processes import join_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('config', nargs='?', help='config of a detector or classifier; ASR in it is folded away first')
    source.add_argument('--model', metavar='torchvision:NAME', help='a classifier of torchvision, such as torchvision:resnet50')
    parser.add_argument(
        '--part', choices=['whole', 'backbone'], default='whole', help="what of a config's network (default: whole)"
    )
    parser.add_argument(
        '--layer', metavar='NAME', help='one layer or stage of it alone, on a map as it gets; not of whole configs'
    )
    parser.add_argument(
        '--attention', nargs='+', metavar='κ', help=f'of {", ".join(sorted(ATTENTIONS))} (default: SE, unless --convs is given)'
    )
    parser.add_argument(
        '--convs',
        nargs='+',
        default=[],
        metavar='KIND',
        help=f'of {", ".join(sorted(CONVOLUTIONS))}; options after commas: XVolution,branch=sa',
    )
    parser.add_argument(
        '--delta', type=_positive, nargs='+', default=[1], help='numbers of attention modules in an ASR (default: 1)'
    )
    parser.add_argument('--batch', type=_positive, nargs='+', default=[8], help='images; one table each (default: 8)')
    parser.add_argument(
        '--size', type=_positive, nargs='+', default=[224], help='pixels: a side, or height and width (default: 224)'
    )
    parser.add_argument(
        '--sides',
        type=_positive,
        nargs='+',
        default=[],
        help='pixels of a side; one table each, and a picture of how cost grows',
    )
    parser.add_argument('--rounds', type=_positive, default=20, help='rounds of measurement (default: 20)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: %(default)s')
    parser.add_argument('--threads', type=_positive, help="threads of the processor (default: torch's own choice)")
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 elsewhere')
    parser.add_argument('--channels-last', action='store_true', help='memory format channels_last')
    parser.add_argument('--compile', action='store_true', help='torch.compile the network; of a detector, the backbone')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write everything that was measured')
    parser.add_argument(
        '--picture', type=Path, metavar='FILE.png', help='also draw speed against parameters, or with --sides cost against them'
    )
    args = parser.parse_args()
    args.attention = args.attention or ([] if args.convs else ['SE'])
    return args


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return int(text)


def check(args: argparse.Namespace) -> None:
    """Refuse what can't work before anything is built."""
    if unknown := [name for name in args.attention if name not in ATTENTIONS]:
        raise InputError(f'--attention {" ".join(unknown)}: unknown; known are {", ".join(sorted(ATTENTIONS))}')
    try:
        for text in args.convs:
            kind_and_options(text)
    except ValueError as error:
        raise InputError(f'--convs {error}') from None
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise InputError(f'--device {args.device}: {error}'.splitlines()[0]) from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise InputError(f'--device {args.device}: torch finds no GPU here; leave --device out to measure the processor')
    if device.type not in ('cpu', 'cuda'):
        raise InputError(f'--device {args.device}: only cpu and cuda can be measured')
    if len(args.size) > 2:
        raise InputError(f'--size takes a side, or height and width, not {len(args.size)} numbers')
    for option, path in (('--out', args.out), ('--picture', args.picture)):
        if path and path.exists():
            raise InputError(f'{option} {path}: is there already; name another file')
        if path and not os.access(path.parent, os.W_OK):
            raise InputError(f"{option} {path}: can't write into {path.parent}")
    if args.picture and args.convs and not args.sides:
        raise InputError('--picture draws attention, or what grows over --sides; give them, or leave --convs out')
    if args.layer and args.config and args.part == 'whole':
        raise InputError('--layer goes with --model or --part backbone')
    if args.sides and len(args.batch) > 1:
        raise InputError('--sides goes with one --batch')
    if args.picture and not find_spec('matplotlib'):
        raise InputError('--picture needs matplotlib: pip install matplotlib')


def progress(rounds: Iterable, description: str) -> Iterable:
    """A progress bar, where rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return rounds
    return track(rounds, description, console=Console(stderr=True), transient=True)


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
    shapes = {side: (*args.batch, side, side) for side in args.sides} or {batch: (batch, *size) for batch in args.batch}
    results = {}
    for key, (batch, *size) in shapes.items():
        inputs = torch.randn(batch, 3, *size, device=device).contiguous(memory_format=layout)
        work = annotated_images(plain, inputs) if args.config and args.part == 'whole' else images(inputs)
        if args.layer:
            inputs = map_before(plain, args.layer, inputs).contiguous(memory_format=layout)
            work = images(inputs)
        try:
            models = variants(plain, args.attention, args.delta) if args.attention else {}
            models |= convolutions(plain, args.convs) if args.convs else {}
            if args.layer:
                models = {name: model.get_submodule(args.layer) for name, model in models.items()}
            try_out(models['plain'], work)
        except ValueError as error:
            raise InputError(f'{source}: {error}') from None
        track = progress if rank == 0 else (lambda rounds, description: rounds)
        results[key] = measure(models, work, args.rounds, args.amp, args.compile, track)
        if rank == 0:
            kind = 'map' if args.layer else 'images'
            print(f'\n{source}, {kind} {" x ".join(map(str, inputs.shape))}, {args.rounds} rounds\n')
            print(tables(results[key], batch))
    if rank:
        return
    found = machine(device)
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    settings = vars(args) | {'device': device, 'threads': torch.get_num_threads(), 'processes': processes}
    print('\n' + ', '.join(f'{key} {value}' for key, value in found.items()))
    print(', '.join(f'{key} {value}' for key, value in settings.items() if value and key not in ('out', 'picture')))
    try:
        if args.out:
            costs = {key: [dataclasses.asdict(cost) for cost in costs] for key, costs in results.items()}
            content = {'machine': found, 'settings': settings, 'sides' if args.sides else 'batches': costs}
            args.out.write_text(json.dumps(content, indent=1, default=str))
        if args.picture:
            drawn = draw_growth(results, *args.batch, source) if args.sides else draw_speed(results, args.attention, source)
            drawn.savefig(args.picture)
    except (OSError, ValueError) as error:  # a full disk, a picture of a kind that matplotlib does not know
        raise InputError(f"can't write the results: {error}") from None


if __name__ == '__main__':
    exit_on_input_error(main)
