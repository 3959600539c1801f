"""Photographs and style images for style transfer. Needs torch, numpy and Pillow."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ..errors import InputError, as_input_error

_SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff'}
#: Colors of the drawn style image, from far from the center of a swirl to near it.
_COLORS = '#0b1d51 #123a8c #1f6fb5 #3fa7c9 #8fd3d1 #f6e8b1 #f4c542 #e8862e #c8431f #5a1a2b'.split()


def read_image(path: str | Path, size: int) -> torch.Tensor:
    """Read an image, and resize it.

    Args:
        path (str | Path): File of any format that Pillow reads.
        size (int): Pixels of the shorter side, a multiple of 4.

    Returns:
        Tensor: The image, uint8 (3, H, W); H and W are multiples of 4.

    Raises:
        InputError: If the file does not exist or can't be read as an image.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such file')
    with as_input_error(f"{path}: can't be read as an image"), Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert('RGB')
        sides = (4 * round(side * size / min(image.size) / 4) for side in image.size)
        return _to_tensor(image.resize(tuple(sides), Image.Resampling.LANCZOS))


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def find_photographs(folder: str | Path, held_out: list[str] | None = None) -> tuple[list[Path], list[Path]]:
    """Find the photographs in a folder, and separate those to evaluate on.

    Args:
        folder (str | Path): Folder with images.
        held_out (list[str], optional): Names of the files to evaluate on. Default: every fifth one, in the
            order of the names.

    Returns:
        tuple[list[Path], list[Path]]: The photographs to train on, and those to evaluate on.

    Raises:
        InputError: If the folder does not exist, a name is not in it, or nothing is left for one of the two.
    """
    if not Path(folder).is_dir():
        raise InputError(f'{folder}: no such folder; pass a folder with photographs')
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _SUFFIXES)
    names = [path.name for path in paths]
    if len(paths) < 2:
        raise InputError(
            f'{folder}: has {len(paths)} images ({", ".join(sorted(_SUFFIXES))}); two are needed, one '
            'to train on and one to evaluate on'
        )
    chosen = set(names[4::5] or names[-1:]) if held_out is None else set(held_out)
    if missing := sorted(chosen - set(names)):
        raise InputError(f'`held_out` {missing[0]}: no such image in {folder}')
    if len(chosen) == len(paths):
        raise InputError(f'`held_out` names all images in {folder}; leave some to train on')
    return (
        [path for path in paths if path.name not in chosen],
        [path for path in paths if path.name in chosen],
    )


def draw_style(size: int = 256, seed: int = 0) -> torch.Tensor:
    """Draw a style image: brush strokes that follow swirls, blue outside and warm near their centers.

    Args:
        size (int): Height and width in pixels. Default: 256.
        seed (int): Seed of swirls and strokes. Default: 0.

    Returns:
        Tensor: The image, uint8 (3, size, size).
    """
    rng = np.random.default_rng(seed)
    side = 3 * size  # drawn larger and reduced, for smooth edges
    centers, spins = rng.uniform(0, side, (7, 2)), rng.choice([-1, 1], 7)
    image = Image.new('RGB', (side, side), _COLORS[1])
    canvas = ImageDraw.Draw(image)
    for _ in range(3500):
        place = rng.uniform(-0.05 * side, 1.05 * side, 2)
        distance = np.linalg.norm(place - centers, axis=1).min() / (0.4 * side)
        tone = int(np.clip(9 * (1 - distance) + rng.normal(0, 1.6), 0, 9))
        points = []
        for _ in range(rng.integers(6, 18)):
            points.append(tuple(place))
            place = place + 0.012 * side * _direction(place - centers, spins, side)
        width = int(rng.uniform(0.008, 0.018) * side)
        canvas.line(points, fill=_COLORS[tone], width=width, joint='curve')
    return _to_tensor(image.resize((size, size), Image.Resampling.LANCZOS))


def _direction(offsets: np.ndarray, spins: np.ndarray, side: int) -> np.ndarray:
    """Return the unit vector of the flow at the given offsets from the centers of the swirls."""
    distances = np.linalg.norm(offsets, axis=1)
    weights = spins * np.exp(-((distances / (0.22 * side)) ** 2) / 2) / (distances + 1)
    flow = weights @ np.stack([-offsets[:, 1], offsets[:, 0]], 1) + [0.15, 0.05]
    return flow / np.linalg.norm(flow)
