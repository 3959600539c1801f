"""Convert weights of other libraries, or of the authors of ASR or OREPA, for the backbones of mmasr.

Example: python tools/convert.py best.pth.tar
"""

import argparse

from mmasr.attention import asr_attentions
from mmasr.deploy.convert import convert
from mmasr.errors import exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_output


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'weights',
        help='state dict of a ResNet, ResNeXt, RepVGG or EfficientNet, or a checkpoint with one, also '
        '.safetensors',
    )
    parser.add_argument(
        '--attention',
        choices=[*asr_attentions(), 'none'],
        default='SE',
        help='attention of the ASR that is added to a network of a library (default: SE); none: fold '
        'everything, for a plain network',
    )
    add_output(
        parser,
        'PATH.pth',
        'converted checkpoint; its config is written next to it (default: <name>_asr.pth; with --attention '
        'none <name>_plain.pth)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    attention = None if args.attention == 'none' else args.attention
    converted = convert(args.weights, attention, args.out, args.force)
    backbone = converted.backbone
    size = f'of depth {backbone["depth"]}' if 'depth' in backbone else backbone.get('arch', '')
    size = backbone.get('backbone', backbone).get('model_name', size)
    parts = [f'{converted.asrs} ASRs'] * bool(converted.asrs)
    parts += [f'OREPA in {converted.orepas} convolutions'] * bool(converted.orepas)
    parts += ['ordinary attention'] * ('plugins' in backbone)
    print(f'{backbone["type"]} {size} {"with " + " and ".join(parts) if parts else "without ASR and OREPA"}')
    print(printable(f'wrote {converted.checkpoint} and {converted.config}'))


if __name__ == '__main__':
    exit_on_input_error(main)
