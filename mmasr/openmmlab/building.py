"""What the tools share: arguments, configs, models and their weights, and whether the data is there."""

import argparse
import inspect
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from ..deploy.deployed_config import without_downloads
from ..deploy.untrusted_config import walk
from ..errors import InputError
from .checkpoint import read_checkpoint

NO_DATA = """{path} is not there, and {config} takes its {key} from it.{where}
  Data of your own: --cfg-options train_dataloader.dataset.data_root=... (docs/own-data.md)
  No data at hand: python tools/shapes.py data/shapes && python tools/train.py configs/shapes/mask_rcnn_r18_asr_se.py
  or for a classifier: python tools/digits.py data/digits && python tools/train.py configs/digits/resnet20_asr_se.py"""

_COCO = """COCO 2017: download train2017, val2017 and the annotations from https://cocodataset.org/#download and unpack them
  so that data/coco/annotations/instances_train2017.json exists, or: mim download mmdet --dataset coco2017"""
_CIFAR = """{0}: download https://www.cs.toronto.edu/~kriz/{1}-python.tar.gz and unpack it so that {2} exists, or let
  MMPretrain do it: --cfg-options train_dataloader.dataset.download=True val_dataloader.dataset.download=True"""
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


class Settings(DictAction):
    """Values of ``--cfg-options``, refused in a line of text where they can't be read."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            parser.error(
                f'{option_string} takes KEY=VALUE with values such as 3, text, [1,2] or "(1,2)", not {" ".join(values)}'
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common, named as MMDetection names them."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Settings, default={}, metavar='KEY=VALUE', help='override settings of the config'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def config_from_arguments(args: argparse.Namespace) -> Config:
    """Load the config that the arguments name, with what they override.

    Raises:
        InputError: If the config can't be loaded.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config)
    config.launcher = args.launcher
    config.merge_from_dict(args.cfg_options)
    if args.work_dir:
        config.work_dir = args.work_dir
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return config


def load_config(path: str | Path) -> Config:
    """Load a config file of the user's own, which is executed.

    Raises:
        InputError: If it is missing or broken.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such config')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program and can fail in any way
        raise InputError(one_line(str(path), error)) from error


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


def build_runner(config: Config) -> Runner:
    """Build the runner that a config asks for.

    From then on mmengine reads local checkpoints with :func:`read_checkpoint`, not with its own loader, which falls back to
    unrestricted unpickling.
    """

    def load_from_local(filename, map_location):
        return read_checkpoint(filename)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    try:
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    except InputError:
        raise
    except Exception as error:  # of whatever the config asks for
        raise InputError(one_line(f'{config.filename} does not build', error)) from error


def build_model(config: Config) -> nn.Module:
    """Build a config's model on the CPU, without downloads, its SyncBatchNorms as BatchNorms, which are the same in eval mode.

    Raises:
        InputError: If it does not build.
    """
    try:
        init_default_scope(config.get('default_scope', 'mmengine'))
        model = without_downloads(config.model.to_dict())
        if 'data_preprocessor' in config:  # where MMPretrain's configs have it
            model.setdefault('data_preprocessor', config.data_preprocessor)
        return revert_sync_batchnorm(MODELS.build(ConfigDict(model)))
    except Exception as error:  # a config can be wrong in any way
        raise InputError(one_line("the config's model does not build", error)) from error


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights that must fit; they are converted to the model's type.

    Raises:
        InputError: If weights are missing, too many, or of another shape; ``source`` is where they come from.
    """
    own = model.state_dict()
    problems = {
        'missing': [name for name in own if name not in weights],
        'not in the model': [name for name in weights if name not in own],
        'of another shape': [name for name, tensor in own.items() if name in weights and tensor.shape != weights[name].shape],
    }
    if any(problems.values()):
        found = '; '.join(f'{problem}: {some(names)}' for problem, names in problems.items() if names)
        raise InputError(f"{source}: config and weights don't fit: {found}")
    model.load_state_dict(weights)


def one_line(problem: str, error: Exception) -> str:
    """Say in one line what went wrong and why."""
    return f'{problem}: {type(error).__name__}: {error}'.splitlines()[0]


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ', '.join(name if name.isprintable() else repr(name) for name in names[:5]) + (
        f' and {len(names) - 5} more' if len(names) > 5 else ''
    )
