"""A small classification set that needs no download: the handwritten digits that come with scikit-learn, 8 × 8 pixels."""

from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

TRAINING = 300  # images, few enough to leave networks something to tell them apart by; the other 1497 are for validation


def write_digits(out: str | Path) -> tuple[int, int]:
    """Write the digits as images, a folder for each class: ``train/0/*.png``, ..., ``val/9/*.png``.

    The order is shuffled with a fixed seed before it is split, so the same files come out each time.

    Args:
        out (str | Path): Folder to write to; made if it is missing.

    Returns:
        tuple[int, int]: Number of images for training and for validation.
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for place, index in enumerate(order):
        folder = Path(out, 'train' if place < TRAINING else 'val', str(digits.target[index]))
        folder.mkdir(parents=True, exist_ok=True)
        image = (digits.images[index] * 255 / 16).round().astype(np.uint8)
        (folder / f'{index:04d}.png').write_bytes(cv2.imencode('.png', image)[1])
    return TRAINING, len(order) - TRAINING
