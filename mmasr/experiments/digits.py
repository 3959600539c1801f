"""A small classification dataset without a download: scikit-learn's handwritten digits, 8 × 8 pixels."""

from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

#: Number of training images, few enough that networks still differ in accuracy. The other 1497 are for
#: validation.
TRAINING = 300


def write_digits(out: str | Path) -> tuple[int, int]:
    """Write the digits as images, a folder for each class: ``train/0/*.png``, ..., ``val/9/*.png``.

    The images are shuffled with a fixed seed before they are split, so every call writes the same files.

    Args:
        out (str | Path): Folder to write to; created if it does not exist.

    Returns:
        tuple[int, int]: Number of training images and of validation images.
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for place, index in enumerate(order):
        folder = Path(out, 'train' if place < TRAINING else 'val', str(digits.target[index]))
        folder.mkdir(parents=True, exist_ok=True)
        image = (digits.images[index] * 255 / 16).round().astype(np.uint8)
        (folder / f'{index:04d}.png').write_bytes(cv2.imencode('.png', image)[1])
    return TRAINING, len(order) - TRAINING
