"""Write a small classification dataset, scikit-learn's handwritten digits.

Example: python tools/digits.py data/digits
"""

import argparse

from mmasr.errors import InputError, exit_on_input_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder to write to')
    return parser.parse_args()


def main() -> None:
    out = parse_args().out
    try:
        from mmasr.experiments.digits import write_digits
    except ImportError as error:
        raise InputError(f'the digits need scikit-learn: pip install scikit-learn ({error})') from error
    try:
        training, validation = write_digits(out)
    except OSError as error:
        raise InputError(f"can't write to {out}: {error.strerror}") from error
    print(f'{out}: {training} training and {validation} validation images of 8 x 8 pixels')


if __name__ == '__main__':
    exit_on_input_error(main)
