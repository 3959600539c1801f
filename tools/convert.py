"""Weights of the paper's authors, torchvision, timm or MMPretrain for an ASR backbone: tools/convert.py model_best.pth.tar"""

import argparse

from mmasr.attention import asr_attentions
from mmasr.deploy.convert import convert
from mmasr.errors import exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_output


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('weights', help='state dict of a ResNet, or a checkpoint with one')
    parser.add_argument(
        '--attention',
        choices=asr_attentions(),
        default='SE',
        help="the ASR's attention for a ResNet that has none (default: SE)",
    )
    add_output(parser, 'PATH.pth', 'the converted checkpoint; its config goes beside it (default: <name>_asr.pth)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    converted = convert(args.weights, args.attention, args.out, args.force)
    backbone = converted.backbone
    kept = ' and ordinary attention' if 'plugins' in backbone else ''
    print(f'{backbone["type"]} of depth {backbone["depth"]} with {converted.hosts} ASRs{kept}')
    print(printable(f'wrote {converted.checkpoint} and {converted.config}'))


if __name__ == '__main__':
    exit_on_input_error(main)
