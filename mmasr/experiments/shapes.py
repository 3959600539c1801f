"""The embedded default: a small set of circles, squares and triangles for instance and semantic segmentation, as COCO's
annotations and as maps of the classes."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle')
_CORNERS = {'circle': 32, 'square': 4, 'triangle': 3}


def write_shapes(out: str | Path, train: int = 1600, val: int = 100, size: int = 128, seed: int = 0) -> None:
    """Write images and annotations: ``train.json``, ``val.json``, ``train/*.png``, ``val/*.png``; and ``maps/train/*.png``,
    ``maps/val/*.png``, whose pixels are 0 for the ground, and of a shape one more than its class in :data:`CLASSES`.

    The same arguments give the same files. Each image has one to four shapes that hardly overlap, of any rotation and colour,
    on textured ground.

    Args:
        out (str | Path): Folder to write to; made if it is missing.
        train (int): Number of training images. Default: 1600.
        val (int): Number of validation images. Default: 100.
        size (int): Height and width in pixels. Default: 128.
        seed (int): Seed of the random numbers. Default: 0.
    """
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
    coarse = rng.uniform(40, 215, (6, 6, 3)).astype(np.float32)
    ground = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 12, (size, size, 3))
    image = ground.clip(0, 255).astype(np.uint8)
    class_map = np.zeros((size, size), np.uint8)
    shapes = []
    for _ in range(rng.integers(1, 5)):
        category = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.1, 0.25) * size
        centre = rng.uniform(radius, size - radius, 2)
        corners = _CORNERS[CLASSES[category]]
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        polygon = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round().astype(np.int32)
        colour = rng.uniform(0, 255, 3)
        mask = cv2.fillPoly(np.zeros_like(class_map), [polygon], 1) > 0
        if (mask & (class_map > 0)).sum() > 0.05 * mask.sum():
            continue
        class_map[mask] = category + 1
        shading = colour + rng.normal(0, 8, (size, size, 3))
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
