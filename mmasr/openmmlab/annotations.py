"""Checks of annotations in COCO's format, which MMDetection skips silently or fails on with a traceback."""

import json
import os
import sys
from collections.abc import Sequence

from ..errors import InputError, one_line, printable, shortened


def check_annotations(
    path: str, classes: Sequence | None, images: str | None, *, with_mask: bool, needs_boxes: bool
) -> None:
    """Check a file of COCO annotations, and print warnings of what training will ignore.

    Args:
        path (str): The file.
        classes (Sequence, optional): Names of the classes that the dataset uses; None for all categories.
        images (str, optional): The folder that must contain the images; None if they are read otherwise.
        with_mask (bool): Whether masks are loaded.
        needs_boxes (bool): Whether a file without annotations is an error. Otherwise its images are
            unlabeled, as semi-supervised training needs them.

    Raises:
        InputError: If the file is not in COCO's format or has no images, a class has no category, an image is
            missing, or MMDetection cannot read an annotation. The message names the image and annotation.
    """
    content = _read_coco(path)
    names = [str(image['file_name']) for image in content['images']]
    if not names:
        raise InputError(f'{path} has no images')
    if not content.get('annotations'):
        if needs_boxes:
            raise InputError(f'{path} has no annotations')
        print(printable(f'{path}: no annotations, so its images are unlabeled'), file=sys.stderr)
    if classes:
        _check_categories(path, [category['name'] for category in content['categories']], classes)
    if images is not None:
        _check_images(path, names, images)
    _check_instances(path, content, classes, with_mask)


def _read_coco(path: str) -> dict:
    """Return the content of a COCO annotation file, with all keys that MMDetection needs in any case."""
    try:
        with open(path) as file:
            content = json.load(file)
        for image in content['images']:
            image['id'], image['file_name']
        for category in content['categories']:
            category['id'], category['name']
        for annotation in content.get('annotations') or []:
            annotation['id'], annotation['image_id'], annotation['category_id']
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(one_line(f'{path} is not a COCO annotation file', error)) from error
    return content


def _check_instances(path: str, content: dict, classes: Sequence | None, with_mask: bool) -> None:
    """Check what MMDetection reads of each image and annotation, and the mask if masks are loaded."""
    images = {image['id']: image for image in content['images']}
    for image in images.values():
        if not (_is_number(image.get('width')) and _is_number(image.get('height'))):
            raise InputError(f'{path}: the image {image["file_name"]} has no width and height')
    used = {item['id'] for item in content['categories'] if classes is None or item['name'] in classes}
    for annotation in content.get('annotations') or []:
        image = images.get(annotation['image_id'])
        if image is None or annotation.get('ignore'):
            continue
        where = f'{path}: annotation {annotation["id"]} of the image {image["file_name"]}'
        box = annotation.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise InputError(f'{where}: its bbox is not [x, y, width, height] but {_shown(box)}')
        if not _is_number(annotation.get('area')):
            raise InputError(f'{where}: its area is not a number but {_shown(annotation.get("area"))}')
        is_read = annotation['category_id'] in used and _is_read(box, annotation['area'], image)
        if with_mask and is_read and not _is_mask(mask := annotation.get('segmentation')):
            raise InputError(
                f'{where}: its segmentation is {_shown(mask)}, not a list of polygons such as [[x1, y1, x2, '
                'y2, x3, y3]] or an RLE; correct or remove the annotation, or train without masks'
            )


def _is_read(box: Sequence[float], area: float, image: dict) -> bool:
    """Return whether CocoDataset reads an annotation. It skips empty boxes and those outside the image."""
    x, y, width, height = box
    inside = min(x + width, image['width']) > max(x, 0) and min(y + height, image['height']) > max(y, 0)
    return inside and area > 0 and width >= 1 and height >= 1


def _is_mask(value: object) -> bool:
    is_list = isinstance(value, list) and value and all(isinstance(polygon, list) for polygon in value)
    return bool(is_list or (isinstance(value, dict) and value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return 'missing' if value is None else f'{str(value)[:60]}'


def _check_categories(path: str, categories: Sequence[str], classes: Sequence[str]) -> None:
    """Raise if a class of the config has no category, and warn of categories that are not classes."""
    if unknown := [str(name) for name in classes if name not in categories]:
        known = sorted({str(name) for name in categories})
        raise InputError(
            f'{path} has no category {shortened(unknown)}, which metainfo.classes lists; '
            f'it has {shortened(known)}'
        )
    if ignored := sorted({str(name) for name in categories if name not in classes}):
        warning = f'{path}: boxes of {shortened(ignored)} are ignored: metainfo.classes does not list them'
        print(printable(warning), file=sys.stderr)


def _check_images(path: str, images: Sequence[str], folder: str) -> None:
    if '://' in folder or not os.path.isdir(folder):
        return
    try:
        found = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise InputError(one_line(f"{folder} can't be read", error)) from error
    missing = [
        name for name in images if name not in found and not os.path.exists(os.path.join(folder, name))
    ]
    if missing:
        raise InputError(
            f'{len(missing)} of the {len(images)} images of {path} are not in {folder}: {shortened(missing)}'
        )
