"""Whether the data that a config names is there, where it comes from if it is not, and what is wrong with it."""

import functools
import inspect
import json
import os
import sys

from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS

from ..core.by_class import by_class
from ..errors import InputError, one_line, printable, some
from .config import walk

EMPTY = 'the dataset is empty: there is no image to run on'

NO_DATA = """{path} is not there, and {config} takes its {key} from it.{where}
  Data of your own: `cfg_options` train_dataloader.dataset.data_root=... (docs/own-data.md)
  No data at hand: python tools/shapes.py data/shapes && python tools/train.py configs/shapes/mask_rcnn_r18_asr_se.py
  or for a classifier: python tools/digits.py data/digits && python tools/train.py configs/digits/resnet20_asr_se.py"""

_COCO = """COCO 2017: download train2017, val2017 and the annotations from https://cocodataset.org/#download and unpack them
  so that data/coco/annotations/instances_train2017.json exists, or: mim download mmdet --dataset coco2017"""
_CIFAR = """{0}: download https://www.cs.toronto.edu/~kriz/{1}-python.tar.gz and unpack it so that {2} exists, or let
  MMPretrain do it: `cfg_options` train_dataloader.dataset.download=True val_dataloader.dataset.download=True"""
#: Where a data set comes from and where it goes, by the class that reads it.
_WHERE = {
    'CocoDataset': _COCO,
    'CocoMetric': _COCO,
    'CIFAR10': _CIFAR.format('CIFAR-10', 'cifar-10', 'data/cifar10/cifar-10-batches-py'),
    'CIFAR100': _CIFAR.format('CIFAR-100', 'cifar-100', 'data/cifar100/cifar-100-python'),
    'CityscapesDataset': """Cityscapes: download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from
  https://www.cityscapes-dataset.com/downloads/ and unpack them so that data/cityscapes/gtFine/train exists; then have
  MMSegmentation's tools/dataset_converters/cityscapes.py data/cityscapes write the labels to train with""",
    'STL10': """STL10: download https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and put its files into one folder,
  so that data/stl10/train_X.bin exists""",
    'ImageNet': """ImageNet: download ILSVRC 2012 from https://image-net.org/download-images and sort it into a folder for each
  class, data/imagenet/train/n01440764 and data/imagenet/val/n01440764 to begin with""",
}

#: Whether a class reads annotations as COCO has them, of its own base classes too.
_AS_COCO = {'mmdet.CocoDataset': True, 'mmdet.LVISV05Dataset': False, 'mmdet.CocoPanopticDataset': False}


def check_data(config: Config, *parts: str) -> None:
    """Check that the data of a config is where it says.

    Args:
        config (Config): A config of a runner.
        *parts (str): Its keys to look at, such as ``train_dataloader``.

    Raises:
        InputError: If an annotation file or a folder of images is missing; it names the path and the ways on. Or if the
            annotations to train or validate with have no images or boxes, lack classes of the config or images of the folder.
    """
    for part in parts:
        for _, dataset in walk(config.get(part)):
            for path in _paths(dataset, config.get('default_scope')):
                if '://' not in path and not os.path.exists(path):
                    known = _WHERE.get(str(dataset.get('type')).rpartition('.')[2])
                    where = f'\n  {known}' if known else ''
                    config_name = config.filename or 'the embedded config'
                    raise InputError(NO_DATA.format(path=path, config=config_name, key=part, where=where))
            if part in ('train_dataloader', 'val_dataloader') and is_main_process():
                _check_annotations(dataset, config.get('default_scope'))


def _check_annotations(dataset: object, scope: str | None) -> None:
    """Look at COCO's annotations, as MMDetection's CocoDataset is about to, and say what it would pass over."""
    if not (isinstance(dataset, dict) and dataset.get('type') and str(dataset.get('ann_file')).endswith('.json')):
        return
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset['type'])
    if not by_class(_AS_COCO, kind):
        return
    path = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
    if '://' in path:
        return
    try:
        with open(path) as file:
            content = json.load(file)
        images = [image['file_name'] for image in content['images']]
        annotations = len(content['annotations'])
        names = {category['name'] for category in content['categories']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(one_line(f'{path} is no COCO annotation file', error)) from None
    classes = (dataset.get('metainfo') or {}).get('classes') or kind.METAINFO['classes']
    for found, what in ((images, 'images'), (annotations, 'annotations')):
        if not found:
            raise InputError(f'{path} has no {what}')
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f'{path} has no category {some(unknown)}, which metainfo.classes names; it has {some(sorted(names))}')
    if ignored := sorted(names - set(classes)):
        print(printable(f'{path}: boxes of {some(ignored)} are not used: metainfo.classes does not name them'), file=sys.stderr)
    prefix = dataset.get('data_prefix') or {}
    folder = os.path.join(dataset.get('data_root') or '', prefix.get('img') or prefix.get('img_path') or '')
    if '://' not in folder and os.path.isdir(folder):
        there = {entry.name for entry in os.scandir(folder)}
        missing = [name for name in images if name not in there and not os.path.exists(os.path.join(folder, name))]
        if missing:
            raise InputError(f'{len(missing)} of the {len(images)} images of {path} are not in {folder}: {some(missing)}')


def name_images(dataset: object) -> None:
    """Have a dataset name the image that it can't read.

    Args:
        dataset (Dataset): Of mmengine, or one that wraps others.
    """
    for inner in [*getattr(dataset, 'datasets', []), *filter(None, [getattr(dataset, 'dataset', None)])]:
        name_images(inner)
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', []):
        if isinstance(transform, LoadImageFromFile):
            transform.transform = functools.partial(_load, transform)


def _load(transform: BaseTransform, results: dict) -> dict | None:
    try:
        return type(transform).transform(transform, results)
    except Exception as error:  # each backend has its own
        raise InputError(one_line(f"{results.get('img_path')} can't be read as an image", error)) from None


def _paths(dataset: object, scope: str | None) -> list[str]:
    """The files and folders that a dataset's or an evaluator's config names; none if it downloads them."""
    if not isinstance(dataset, dict):
        return []
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name]
    if root and not paths and 'type' in dataset:
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(dataset['type'])
        download = inspect.signature(kind.__init__).parameters.get('download')
        if not (download and dataset.get('download', download.default)):
            return [os.path.join(root, kind.base_folder) if hasattr(kind, 'base_folder') else root]  # CIFAR has one
    return paths
