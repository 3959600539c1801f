"""The embedded default dataset: circles, squares and triangles for instance and semantic segmentation.

The annotations are in COCO's format for instances, and class maps for semantic segmentation.
"""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle')
_CORNERS = {'circle': 32, 'square': 4, 'triangle': 3}


def write_shapes(out: str | Path, train: int = 1600, val: int = 100, size: int = 128, seed: int = 0) -> None:
    """Write generated images and their annotations.

    The files are ``train.json``, ``val.json``, ``train/*.png`` and ``val/*.png``; and the class maps
    ``maps/train/*.png`` and ``maps/val/*.png``, in which the background is 0 and a shape is its class index
    in :data:`CLASSES` plus 1.

    The same arguments give the same files. Each image has one to four shapes with little overlap, in random
    rotations and colors, on a textured background.

    Args:
        out (str | Path): Folder to write to; created if it does not exist.
        train (int): Number of training images. Default: 1600.
        val (int): Number of validation images. Default: 100.
        size (int): Height and width in pixels. Default: 128.
        seed (int): Seed of the random numbers. Default: 0.
    """
    for split in ('train', 'val'):  # an interrupted run must not leave new images with old annotations
        Path(out, f'{split}.json').unlink(missing_ok=True)
    for split, count, stream in (('train', train, 0), ('val', val, 1)):
        rng = np.random.default_rng([seed, stream])
        folder, maps = Path(out, split), Path(out, 'maps', split)
        folder.mkdir(parents=True, exist_ok=True)
        maps.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            image, class_map, shapes = _draw(rng, size)
            name = f'{image_id:04d}.png'
            (folder / name).write_bytes(cv2.imencode('.png', image)[1])
            (maps / name).write_bytes(cv2.imencode('.png', class_map)[1])
            images.append({'id': image_id, 'file_name': name, 'height': size, 'width': size})
            for category, polygon in shapes:
                annotations.append(_annotation(len(annotations) + 1, image_id, category, polygon))
        content = {
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)],
        }
        Path(out, f'{split}.json').write_text(json.dumps(content))


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return an image, its class map, and the category and polygon of each shape."""
    coarse = rng.uniform(40, 215, (6, 6, 3)).astype(np.float32)
    background = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    background = background + rng.normal(0, 12, (size, size, 3))
    image = background.clip(0, 255).astype(np.uint8)
    class_map = np.zeros((size, size), np.uint8)
    shapes = []
    for _ in range(rng.integers(1, 5)):
        category = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.1, 0.25) * size
        center = rng.uniform(radius, size - radius, 2)
        corners = _CORNERS[CLASSES[category]]
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygon = (center + radius * directions).round().astype(np.int32)
        color = rng.uniform(0, 255, 3)
        mask = cv2.fillPoly(np.zeros_like(class_map), [polygon], 1) > 0
        if (mask & (class_map > 0)).sum() > 0.05 * mask.sum():
            continue
        class_map[mask] = category + 1
        shading = color + rng.normal(0, 8, (size, size, 3))
        image[mask] = shading.clip(0, 255).astype(np.uint8)[mask]
        shapes.append((category + 1, polygon))
    return image, class_map, shapes


def _annotation(annotation_id: int, image_id: int, category: int, polygon: np.ndarray) -> dict:
    x, y, width, height = cv2.boundingRect(polygon)
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': category,
        'segmentation': [polygon.flatten().tolist()],
        'bbox': [x, y, width, height],
        'area': float(cv2.contourArea(polygon)),
        'iscrowd': 0,
    }
