"""What ASR costs: a training step, the memory it keeps, and inference, beside the plain ResNet-50 of torchvision.

All variants take turns within a round; ratios are taken within a round, and their median and 10-90 % range are shown.
"""

import argparse
import copy
import platform

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmasr
from mmasr.benchmark import inference, ratio, saved_for_backward, time_in_turns, training_step


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--attention', default='SE', choices=sorted(set(mmasr.attention.ATTENTIONS) - {'CBAM'}))
    parser.add_argument('--delta', type=int, nargs='+', default=[1, 4], help='numbers of attention modules (default: 1 4)')
    parser.add_argument('--batch', type=int, default=8, help='images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=160, help='height and width in pixels (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=20, help='rounds of measurement (default: %(default)s)')
    return parser.parse_args()


def show(seconds: torch.Tensor, reference: torch.Tensor) -> str:
    low, median, high = ratio(seconds, reference)
    return f'{median:.3f} ({low:.2f}-{high:.2f})'


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    plain = torchvision.models.resnet50()
    models = {'plain': plain}
    for delta in args.delta:
        models[f'ASR({args.attention}), δ = {delta}'] = mmasr.attach(
            copy.deepcopy(plain), {'type': args.attention}, delta=delta
        )
    models['deployed'] = mmasr.fold(mmasr.attach(copy.deepcopy(plain), {'type': args.attention}))
    x = torch.randn(args.batch, 3, args.size, args.size)

    memory = {name: saved_for_backward(model, x) for name, model in models.items()}
    training, deployment = (
        time_in_turns({name: make(model, x) for name, model in models.items()}, track(range(args.rounds), description=what))
        for make, what in ((training_step, 'training'), (inference, 'inference'))
    )
    train_table = Table('training step', 'seconds', '÷ plain', 'kept for backward, MiB', '÷ plain')
    test_table = Table('inference', 'seconds', '÷ plain')
    for name in models:
        seconds = f'{training[name].median():.3f}', show(training[name], training['plain'])
        train_table.add_row(name, *seconds, f'{memory[name] / 2**20:.1f}', f'{memory[name] / memory["plain"]:.4f}')
        test_table.add_row(name, f'{deployment[name].median():.3f}', show(deployment[name], deployment['plain']))
    console = Console()
    console.print(train_table, test_table)
    console.print(
        f'ResNet-50, {args.batch} x 3 x {args.size} x {args.size}, {args.rounds} rounds, {torch.get_num_threads()} threads, '
        f'torch {torch.__version__}, {platform.machine()}'
    )


if __name__ == '__main__':
    main()
