"""Write the embedded default dataset, generated shapes for segmentation.

Example: python tools/shapes.py data/shapes
"""

import argparse

from mmasr.errors import InputError, exit_on_input_error
from mmasr.experiments.shapes import write_shapes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder to write to')
    parser.add_argument(
        '--train', type=int, default=1600, help='number of training images (default: %(default)s)'
    )
    parser.add_argument(
        '--val', type=int, default=100, help='number of validation images (default: %(default)s)'
    )
    parser.add_argument(
        '--size', type=int, default=128, help='height and width in pixels (default: %(default)s)'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the random numbers (default: %(default)s)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if min(args.train, args.val, args.size) < 1 or args.seed < 0:
        raise InputError('--train, --val and --size must be at least 1, and --seed at least 0')
    try:
        write_shapes(**vars(args))
    except OSError as error:
        raise InputError(f"can't write to {args.out}: {error.strerror}") from error
    images = f'{args.train} training and {args.val} validation images'
    print(f'{args.out}: {images} of {args.size} x {args.size} pixels')


if __name__ == '__main__':
    exit_on_input_error(main)
