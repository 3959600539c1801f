"""Whether the data that a config names is there, and where it comes from if it is not."""

import inspect
import os

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..errors import InputError
from .config import walk

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
    'STL10': """STL10: download https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz and put its files into one folder,
  so that data/stl10/train_X.bin exists""",
    'ImageNet': """ImageNet: download ILSVRC 2012 from https://image-net.org/download-images and sort it into a folder for each
  class, data/imagenet/train/n01440764 and data/imagenet/val/n01440764 to begin with""",
}


def check_data(config: Config, *parts: str) -> None:
    """Check that the data of a config is where it says.

    Args:
        config (Config): A config of a runner.
        *parts (str): Its keys to look at, such as ``train_dataloader``.

    Raises:
        InputError: If an annotation file or a folder of images is missing; it names the path and the ways on.
    """
    for part in parts:
        for _, dataset in walk(config.get(part)):
            for path in _paths(dataset, config.get('default_scope')):
                if '://' not in path and not os.path.exists(path):
                    known = _WHERE.get(str(dataset.get('type')).rpartition('.')[2])
                    where = f'\n  {known}' if known else ''
                    config_name = config.filename or 'the embedded config'
                    raise InputError(NO_DATA.format(path=path, config=config_name, key=part, where=where))


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
