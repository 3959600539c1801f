"""Checks of the data that a config names: whether it exists, where to get it, and what is wrong with it."""

import contextlib
import functools
import inspect
import os
from collections.abc import Iterator, Sequence

from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, Registry

from ..core.class_lookup import lookup_by_class
from ..errors import InputError, as_input_error
from .annotations import check_annotations
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

#: Packages whose classes read data in a known way.
_KNOWN_PACKAGES = {'mmasr', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}
#: Methods that decide which data a dataset reads, and how.
_READING = ('__init__', '_load_metainfo', '_join_prefix', 'load_data_list', 'parse_data_info', 'full_init')


def check_data(config: Config, *parts: str) -> None:
    """Check the data of a config before anything is built.

    Only data that OpenMMLab's own classes read from local files is checked. Custom datasets and transforms,
    and files that are read through ``backend_args``, may be anything.

    Args:
        config (Config): Config of a runner.
        *parts (str): Keys of the config to check, such as ``train_dataloader``.

    Raises:
        InputError: If an annotation file or an image folder does not exist; the message names the path and
            the options. Also if the classes are not a list of names, or if COCO annotations for training or
            validation have no images, lack boxes, masks or classes that the config needs, or list images
            that are not in the folder.
    """
    scope = config.get('default_scope')
    for part in parts:
        transforms = list(_transforms(config.get(part), scope))
        has_local_images = _has_local_images(config.get(part), transforms)
        with_mask = any(transform.get('with_mask') for _, transform in transforms)
        for _, dataset in walk(config.get(part)):
            if not isinstance(dataset, dict):
                continue
            kind = _class_of(dataset, scope)
            if kind is not None and not _is_known(kind, *_READING):
                continue
            has_local_file = _is_local(dataset)
            for path in _paths(dataset, kind, has_local_file, has_local_images):
                if '://' not in path and not os.path.exists(path):
                    raise InputError(_no_data(path, dataset, config, part))
            classes = _classes(dataset, kind)
            if part not in ('train_dataloader', 'val_dataloader') or not is_main_process():
                continue
            if has_local_file and (file := _coco_file(dataset, kind)):
                drops_unlabeled = (dataset.get('filter_cfg') or {}).get('filter_empty_gt', False)
                check_annotations(
                    file,
                    classes,
                    _image_folder(dataset) if has_local_images else None,
                    with_mask=with_mask,
                    needs_boxes=part == 'val_dataloader' or drops_unlabeled,
                )


def _class_of(
    config: dict, scope: str | None, registries: Sequence[Registry] = (DATASETS, METRICS)
) -> type | None:
    """Return the class of a dataset's or metric's config, or None if its type is missing or unknown."""
    kind = config.get('type')
    if isinstance(kind, str):
        for registry in registries:
            with registry.switch_scope_and_registry(scope) as current:
                if found := current.get(kind):
                    return found if isinstance(found, type) else None
    return kind if isinstance(kind, type) else None


def _is_known(kind: type, *methods: str) -> bool:
    """Return whether a class defines none of some methods itself, unless it is of a known package."""
    owners = [next((base for base in kind.__mro__ if method in vars(base)), object) for method in methods]
    return all(owner.__module__.split('.')[0] in {*_KNOWN_PACKAGES, 'builtins'} for owner in owners)


def _is_local(config: dict) -> bool:
    """Return whether a dataset or transform reads local files without any mapping of their paths."""
    backends = [config.get(name) for name in ('backend_args', 'file_client_args')]
    return all(not backend or backend in ({'backend': 'local'}, {'backend': 'disk'}) for backend in backends)


def _transforms(part: object, scope: str | None) -> Iterator[tuple[type, dict]]:
    """Yield the class and config of all transforms in a part of a config."""
    for _, value in walk(part):
        if isinstance(value, dict) and (kind := _class_of(value, scope, (TRANSFORMS,))):
            yield kind, value


def _has_local_images(part: object, transforms: Sequence[tuple[type, dict]]) -> bool:
    """Return whether a part of a config reads its images from the files that the annotations name."""
    loaders = [pair for pair in transforms if issubclass(pair[0], LoadImageFromFile)]
    if not loaders:  # a custom transform may load them
        return not any(key == 'pipeline' and value for key, value in walk(part))
    return all(_is_known(kind, '__init__', 'transform') and _is_local(config) for kind, config in loaders)


def _no_data(path: str, dataset: dict, config: Config, part: str) -> str:
    download = _DOWNLOADS.get(_name(dataset))
    return NO_DATA.format(
        path=path,
        config=config.filename or 'the embedded config',
        key=part,
        where=f'\n  {download}' if download else '',
    )


def _name(dataset: dict) -> str:
    """Return the name of a dataset's class."""
    kind = dataset.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]


def _data_root(dataset: dict) -> str:
    root = dataset.get('data_root') or ''
    if not isinstance(root, str | os.PathLike):
        raise InputError(f'data_root of {_name(dataset)} must be the path of a folder, not {root!r}')
    return os.fspath(root)


def _data_prefix(dataset: dict) -> dict:
    prefix = dataset.get('data_prefix') or {}
    return prefix if isinstance(prefix, dict) else {'img_path': prefix}


def _paths(dataset: dict, kind: type | None, has_local_file: bool, has_local_images: bool) -> list[str]:
    """Return the local paths that a dataset's or evaluator's config names; none if the dataset downloads."""
    root = _data_root(dataset)
    names = [dataset.get('ann_file')] if has_local_file else []
    names += _data_prefix(dataset).values() if has_local_images else []
    paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name]
    if root and has_local_file and not paths and 'type' in dataset:
        download = inspect.signature(kind.__init__).parameters.get('download')
        if not (download and dataset.get('download', download.default)):
            # CIFAR's files are in a subfolder with a fixed name.
            return [os.path.join(root, kind.base_folder) if hasattr(kind, 'base_folder') else root]
    return paths


def _classes(dataset: dict, kind: type | None) -> Sequence | None:
    """Return the names of a dataset's classes, from its config, a file that this names, or its class.

    Raises:
        InputError: If they are a text but not a file, or a name has control characters.
    """
    metainfo = dataset.get('metainfo')
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    source = 'metainfo.classes'
    if isinstance(classes, str):
        if '://' in classes:
            return None
        if not os.path.isfile(classes):
            raise InputError(
                f'metainfo.classes of {_name(dataset)} is {classes!r}, which is neither a sequence of names '
                f'nor a file with one name per line; a single class is classes=({classes!r},)'
            )
        source = classes
        with as_input_error(f'metainfo.classes: {classes} is not a text file'):
            classes = list_from_file(classes)
    classes = classes or getattr(kind, 'METAINFO', {}).get('classes')
    if not isinstance(classes, list | tuple):
        return None
    if wrong := [name for name in classes if isinstance(name, str) and not name.isprintable()]:
        raise InputError(
            f'{source}: the class {wrong[0]!r} has a tab or another control character; rename it'
        )
    return classes


def _coco_file(dataset: dict, kind: type | None) -> str | None:
    """Return the path of a dataset's annotations if they are a local file in COCO's format."""
    is_coco = kind is not None and lookup_by_class(_COCO_FORMAT, kind)
    path = os.path.join(_data_root(dataset), str(dataset.get('ann_file')))
    return path if is_coco and path.endswith('.json') and '://' not in path else None


def _image_folder(dataset: dict) -> str:
    prefix = _data_prefix(dataset)
    return os.path.join(_data_root(dataset), prefix.get('img') or prefix.get('img_path') or '')


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
    path = results.get('img_path')
    annotated = results.get('height'), results.get('width')
    with as_input_error(f"{path} can't be read as an image"):
        loaded = type(transform).transform(transform, results)
    size = tuple(loaded['img_shape'][:2]) if loaded and 'img_shape' in loaded else annotated
    if results.get('instances') and size != annotated and size == annotated[::-1]:
        raise InputError(
            f'{path} is {size[1]} x {size[0]} pixels, but its annotation has width {annotated[1]} and height '
            f"{annotated[0]}: the file's EXIF orientation rotates it, and its boxes would be misplaced; load "
            "it with color_type='color_ignore_orientation', or rotate the pixels and remove the orientation"
        )
    return loaded
