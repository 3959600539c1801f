"""What attention costs, with ASR and without: tools/benchmark.py configs/mask_rcnn_r50.py --attention SE ECA

From one network, in one run: the plain network, attention κ, ASR(κ) in training form, in the paper's form (which multiplies
the feature map) and deployed, and ASR(κ) + κ. All take turns within a round; ratios to the plain network are taken within
a round, and their median and 10-90 % range are shown.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from mmasr.attention import ATTENTIONS
from mmasr.errors import InputError, exit_on_input_error
from mmasr.experiments.benchmark.measure import Cost, machine, measure
from mmasr.experiments.benchmark.variants import variants
from mmasr.experiments.benchmark.workload import Workload, annotated_images, images
from mmasr.processes import join_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('config', nargs='?', help='config of a detector or classifier; ASR in it is folded away first')
    source.add_argument('--model', metavar='torchvision:NAME', help='a classifier of torchvision, such as torchvision:resnet50')
    parser.add_argument(
        '--part', choices=['whole', 'backbone'], default='whole', help="what of a config's network (default: whole)"
    )
    parser.add_argument('--attention', nargs='+', default=['SE'], metavar='κ', help=f'of {", ".join(sorted(ATTENTIONS))}')
    parser.add_argument(
        '--delta', type=_positive, nargs='+', default=[1], help='numbers of attention modules in an ASR (default: 1)'
    )
    parser.add_argument('--batch', type=_positive, nargs='+', default=[8], help='images; one table each (default: 8)')
    parser.add_argument(
        '--size', type=_positive, nargs='+', default=[224], help='pixels: a side, or height and width (default: 224)'
    )
    parser.add_argument('--rounds', type=_positive, default=20, help='rounds of measurement (default: 20)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: %(default)s')
    parser.add_argument('--threads', type=_positive, help="threads of the processor (default: torch's own choice)")
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 elsewhere')
    parser.add_argument('--channels-last', action='store_true', help='memory format channels_last')
    parser.add_argument('--compile', action='store_true', help='torch.compile the network; of a detector, the backbone')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write everything that was measured')
    parser.add_argument('--picture', type=Path, metavar='FILE.png', help='also draw speed against parameters')
    return parser.parse_args()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return int(text)


def check(args: argparse.Namespace) -> None:
    """Refuse what can't work before anything is built."""
    unknown = [name for name in args.attention if name not in ATTENTIONS]
    if unknown:
        raise InputError(f'--attention {" ".join(unknown)}: unknown; known are {", ".join(sorted(ATTENTIONS))}')
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
    if args.picture:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise InputError('--picture needs matplotlib: pip install matplotlib') from None


def torchvision_model(name: str) -> nn.Module:
    """Build a classifier of torchvision, with random weights."""
    package, _, name = name.partition(':')
    if package != 'torchvision':
        raise InputError(f'--model {package}:{name}: only torchvision:NAME is known; give a config for other networks')
    try:
        from torchvision import models
    except ImportError:
        raise InputError('--model needs torchvision: pip install torchvision') from None
    if name not in models.list_models(module=models):
        raise InputError(f'--model torchvision:{name}: torchvision has no such classifier')
    return models.get_model(name, weights=None)


def config_model(path: str, part: str) -> nn.Module:
    """Build the network of a config, without ASR and with random weights."""
    try:
        from mmengine.registry import MODELS, init_default_scope

        from mmasr.deploy.deployed_config import deployed_config
        from mmasr.openmmlab.config import load_config
    except ImportError as error:
        raise InputError(f'{path}: a config needs OpenMMLab ({error}); --model torchvision:resnet50 does not') from None
    config = load_config(path)
    if 'model' not in config:
        raise InputError(f'{path}: has no model')
    config = deployed_config(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        model = MODELS.build(config.model)
    except Exception as error:  # of whatever the config asks for
        raise InputError(f'{path} does not build: {type(error).__name__}: {error}'.splitlines()[0]) from error
    if part == 'whole':
        return model
    if not hasattr(model, 'backbone'):
        raise InputError(f'{path}: {type(model).__name__} has no backbone')
    return model.backbone


def workload(args: argparse.Namespace, model: nn.Module, batch: int) -> Workload:
    inputs = torch.randn(batch, 3, *(args.size if len(args.size) == 2 else args.size * 2), device=args.device)
    if args.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return annotated_images(model, inputs) if args.config and args.part == 'whole' else images(inputs)


def try_out(model: nn.Module, work: Workload, source: str) -> None:
    """Run a network once in training and once in eval mode."""
    try:
        model.train()
        work.loss(model).backward()
        model.eval()
        with torch.no_grad():
            work.predict(model)
    except Exception as error:  # of whatever the network does
        shown = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise InputError(f'{source} does not run on images of {tuple(work.inputs.shape)}: {shown}') from error
    model.zero_grad()


def progress(rounds: Iterable, description: str) -> Iterable:
    """A progress bar, where rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return rounds
    return track(rounds, description, console=Console(stderr=True), transient=True)


def tables(costs: list[Cost], batch: int, on_gpu: bool) -> str:
    """The results as two Markdown tables, of inference and of training."""
    inference = [['inference', 'parameters, M', 'multiply-adds, G', 'ms', 'images/s', '÷ plain']]
    training = [['training step', 'ms', '÷ plain', 'peak, MiB' if on_gpu else 'kept for backward, MiB', '÷ plain']]
    if on_gpu:
        inference[0].append('peak, MiB')
    for cost in costs:
        seconds = median(cost.inference)
        size = f'{cost.parameters / 1e6:.2f}', f'{cost.multiply_adds / 1e9:.3f}'
        speed = f'{seconds * 1e3:.1f}', f'{batch / seconds:.1f}', spread(cost.inference_ratio)
        inference.append([cost.name, *size, *speed, *([f'{cost.inference_bytes / 2**20:.1f}'] if on_gpu else [])])
        memory = f'{cost.training_bytes / 2**20:.1f}', f'{cost.training_bytes / costs[0].training_bytes:.4f}'
        training.append([cost.name, f'{median(cost.training) * 1e3:.1f}', spread(cost.training_ratio), *memory])
    return f'{markdown(inference)}\n\n{markdown(training)}'


def markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ['-' * width for width in widths], *rows[1:]]
    return '\n'.join('| ' + ' | '.join(map(str.ljust, line, widths)) + ' |' for line in lines)


def spread(quantiles: list[float]) -> str:
    low, middle, high = quantiles
    return f'{middle:.3f} ({low:.2f}-{high:.2f})'


def draw(path: Path, results: dict[int, list[Cost]], attentions: list[str], title: str) -> None:
    """Speed against parameters, as in the paper's Fig. 3: one panel for each batch size, a colour for each attention."""
    import matplotlib as mpl

    mpl.use('Agg')
    import matplotlib.pyplot as plt

    markers = {}
    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results) + 2, 5), squeeze=False, layout='constrained')
    for axis, (batch, costs) in zip(axes[0], results.items(), strict=True):
        plain = batch / median(costs[0].inference)
        axis.axvline(plain, color='0.8', zorder=0)
        axis.axhline(costs[0].parameters / 1e6, color='0.8', zorder=0)
        for cost in costs:
            attention = next((name for name in sorted(attentions, key=len, reverse=True) if name in cost.name), '')
            form = cost.name.replace(attention, 'κ') if attention else cost.name
            marker = markers.setdefault(form, 'osDv^P<>*X'[len(markers) % 10])
            colour = f'C{attentions.index(attention)}' if attention else 'black'
            slow, middle, fast = (plain / quantile for quantile in reversed(cost.inference_ratio))
            range_ = [[middle - slow], [fast - middle]]
            axis.errorbar(middle, cost.parameters / 1e6, xerr=range_, fmt=marker, color=colour, elinewidth=0.8, alpha=0.8)
        axis.set(xlabel='images per second, inference (10-90 % range)', ylabel='parameters, million', title=f'batch {batch}')
    for form, marker in markers.items():
        axes[0, -1].plot([], [], marker, color='black', markerfacecolor='none', label=form)
    for number, attention in enumerate(attentions):
        axes[0, -1].plot([], [], 's', color=f'C{number}', label=f'κ = {attention}')
    figure.legend(loc='outside right center')
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rank, args.device = join_processes(args.device)
    first = rank == 0
    source = args.model or f'{args.config}, {args.part}'
    plain = torchvision_model(args.model) if args.model else config_model(args.config, args.part)
    plain = plain.to(args.device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    settings = {key: str(value) if isinstance(value, Path | torch.device) else value for key, value in vars(args).items()}
    settings['threads'] = torch.get_num_threads()
    settings['processes'] = int(os.environ.get('WORLD_SIZE', 1))
    found = machine(args.device)
    results = {}
    for batch in args.batch:
        try:
            models = variants(plain, args.attention, args.delta)
        except ValueError as error:
            raise InputError(f'{source}: {error}') from None
        work = workload(args, plain, batch)
        try_out(plain, work, source)
        track = progress if first else (lambda rounds, description: rounds)
        results[batch] = measure(models, work, args.rounds, args.amp, args.compile, track)
        if first:
            print(f'\n{source}, images {" x ".join(map(str, work.inputs.shape))}, {args.rounds} rounds\n')
            print(tables(results[batch], batch, work.inputs.is_cuda))
    if not first:
        return
    print('\n' + ', '.join(f'{key} {value}' for key, value in found.items()))
    print(', '.join(f'{key} {value}' for key, value in settings.items() if value and key not in ('out', 'picture')))
    try:
        if args.out:
            costs = {batch: [dataclasses.asdict(cost) for cost in costs] for batch, costs in results.items()}
            args.out.write_text(json.dumps({'machine': found, 'settings': settings, 'batches': costs}, indent=1))
        if args.picture:
            draw(args.picture, results, args.attention, source)
    except (OSError, ValueError) as error:  # a full disk, a picture of a kind that matplotlib does not know
        raise InputError(f"can't write the results: {error}") from None


if __name__ == '__main__':
    exit_on_input_error(main)
