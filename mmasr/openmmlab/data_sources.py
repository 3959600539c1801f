"""Checks of the data that a config names: whether it exists, where to get it, and what is wrong with it."""

import contextlib
import functools
import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence

from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS

from ..core.class_lookup import lookup_by_class
from ..errors import InputError, as_input_error, one_line, printable, shortened
from .config import walk

EMPTY = 'the dataset is empty: there is no image to run on'

NO_DATA = """{path} does not exist; {config} needs it for its {key}.{where}
  Your own data: `cfg_options` train_dataloader.dataset.data_root=... (docs/own-data.md)
  No data yet: python tools/shapes.py data/shapes && \
python tools/train.py configs/shapes/mask_rcnn_r18_asr_se.py
  or for a classifier: python tools/digits.py data/digits && \
python tools/train.py configs/digits/resnet20_asr_se.py"""

_COCO = """COCO 2017: download train2017, val2017 and the annotations from
  https://cocodataset.org/#download and unpack them so that
  data/coco/annotations/instances_train2017.json exists, or: mim download mmdet --dataset coco2017"""
_CIFAR = """{0}: download https://www.cs.toronto.edu/~kriz/{1}-python.tar.gz
  and unpack it so that {2} exists, or let MMPretrain do it:
  `cfg_options` train_dataloader.dataset.download=True val_dataloader.dataset.download=True"""
#: Name of the class that reads a dataset -> where to download it, and where to put it.
_DOWNLOADS = {
    'CocoDataset': _COCO,
    'CocoMetric': _COCO,
    'CIFAR10': _CIFAR.format('CIFAR-10', 'cifar-10', 'data/cifar10/cifar-10-batches-py'),
    'CIFAR100': _CIFAR.format('CIFAR-100', 'cifar-100', 'data/cifar100/cifar-100-python'),
    'CityscapesDataset': """Cityscapes: download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from
  https://www.cityscapes-dataset.com/downloads/ and unpack them so that data/cityscapes/gtFine/train exists;
  then run MMSegmentation's tools/dataset_converters/cityscapes.py data/cityscapes,
  which writes the labels for training""",
    'STL10': """STL10: download https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz
  and put its files into one folder, so that data/stl10/train_X.bin exists""",
    'ImageNet': """ImageNet: download ILSVRC 2012 from https://image-net.org/download-images
  and sort it into one folder for each class, such as
  data/imagenet/train/n01440764 and data/imagenet/val/n01440764""",
}

#: Whether a class, and so its subclasses, reads annotations in COCO's format.
_COCO_FORMAT = {'mmdet.CocoDataset': True, 'mmdet.LVISV05Dataset': False, 'mmdet.CocoPanopticDataset': False}


def check_data(config: Config, *parts: str) -> None:
    """Check the data of a config before anything is built.

    Args:
        config (Config): Config of a runner.
        *parts (str): Keys of the config to check, such as ``train_dataloader``.

    Raises:
        InputError: If an annotation file or an image folder does not exist; the message names the path and
            the options. Also if COCO annotations for training or validation have no images or boxes, lack
            classes of the config, or list images that are not in the folder.
    """
    scope = config.get('default_scope')
    for part in parts:
        for _, dataset in walk(config.get(part)):
            if not isinstance(dataset, dict):
                continue
            for path in _paths(dataset, scope):
                if '://' not in path and not os.path.exists(path):
                    raise InputError(_no_data(path, dataset, config, part))
            if part in ('train_dataloader', 'val_dataloader') and is_main_process():
                _check_annotations(dataset, scope)


def _no_data(path: str, dataset: dict, config: Config, part: str) -> str:
    kind = dataset.get('type')
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]
    download = _DOWNLOADS.get(name)
    return NO_DATA.format(
        path=path,
        config=config.filename or 'the embedded config',
        key=part,
        where=f'\n  {download}' if download else '',
    )


def _dataset_class(dataset: dict, scope: str | None) -> type | None:
    """Return the class of a dataset's config, or None if its type is missing or unknown."""
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            return registry.get(kind)
    return kind if isinstance(kind, type) else None


def _data_root(dataset: dict) -> str:
    root = dataset.get('data_root') or ''
    if not isinstance(root, str | os.PathLike):
        raise InputError(f'data_root of {dataset.get("type")} must be the path of a folder, not {root!r}')
    return os.fspath(root)


def _data_prefix(dataset: dict) -> dict:
    prefix = dataset.get('data_prefix') or {}
    return prefix if isinstance(prefix, dict) else {'img_path': prefix}


def _paths(dataset: dict, scope: str | None) -> list[str]:
    """Return the paths that a dataset's or evaluator's config names; none if the dataset downloads them."""
    root = _data_root(dataset)
    names = [dataset.get('ann_file'), *_data_prefix(dataset).values()]
    paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name]
    if root and not paths and 'type' in dataset:
        kind = _dataset_class(dataset, scope)
        download = inspect.signature(kind.__init__).parameters.get('download')
        if not (download and dataset.get('download', download.default)):
            # CIFAR's files are in a subfolder with a fixed name.
            return [os.path.join(root, kind.base_folder) if hasattr(kind, 'base_folder') else root]
    return paths


def _check_annotations(dataset: dict, scope: str | None) -> None:
    """Check COCO annotations. MMDetection's CocoDataset would silently skip what is wrong with them."""
    if not str(dataset.get('ann_file')).endswith('.json'):
        return
    kind = _dataset_class(dataset, scope)
    if kind is None or not lookup_by_class(_COCO_FORMAT, kind):
        return
    root, prefix, metainfo = _data_root(dataset), _data_prefix(dataset), dataset.get('metainfo')
    path = os.path.join(root, dataset['ann_file'])
    if '://' in path:
        return
    images, categories = _read_coco(path)
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    classes = classes or getattr(kind, 'METAINFO', {}).get('classes')
    if isinstance(classes, list | tuple):  # not a text: mmengine takes that for a file of names
        _check_categories(path, categories, classes)
    _check_images(path, images, os.path.join(root, prefix.get('img') or prefix.get('img_path') or ''))


def _read_coco(path: str) -> tuple[list[str], list[str]]:
    """Return the file names of all images, and the names of all categories."""
    try:
        with open(path) as file:
            content = json.load(file)
        images = [image['file_name'] for image in content['images']]
        annotations = len(content['annotations'])
        categories = [category['name'] for category in content['categories']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(one_line(f'{path} is not a COCO annotation file', error)) from error
    for count, name in ((len(images), 'images'), (annotations, 'annotations')):
        if not count:
            raise InputError(f'{path} has no {name}')
    return [str(image) for image in images], categories


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


@contextlib.contextmanager
def loading_data(problem: str) -> Iterator[None]:
    """Turn the exceptions of loading data into InputErrors, with a clear message for an empty dataset.

    Args:
        problem (str): What went wrong, at the start of the message.

    Raises:
        InputError: Inside, for any exception.
    """
    try:
        with as_input_error(problem):
            yield
    except InputError as error:
        if 'need at least one array to concatenate' in str(error):  # mmengine's message for an empty dataset
            raise InputError(EMPTY) from error
        raise


def name_images(dataset: object) -> None:
    """Make a dataset name an image that it can't read, in place.

    Args:
        dataset (Dataset): A dataset of mmengine, or a wrapper of some.
    """
    for inner in [*getattr(dataset, 'datasets', []), *filter(None, [getattr(dataset, 'dataset', None)])]:
        name_images(inner)
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', []):
        if isinstance(transform, LoadImageFromFile):
            transform.transform = functools.partial(_load, transform)


def _load(transform: BaseTransform, results: dict) -> dict | None:
    with as_input_error(f"{results.get('img_path')} can't be read as an image"):
        return type(transform).transform(transform, results)
