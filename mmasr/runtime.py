"""What ``tools/train.py`` and ``tools/test.py`` share: arguments, configs, and whether the data is there."""

import argparse
import inspect
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, RUNNERS
from mmengine.runner import CheckpointLoader, Runner

from .checkpoint import read_checkpoint
from .embedded import walk
from .errors import InputError

NO_DATA = """{path} is not there, and {config} takes its {key} from it.
  COCO 2017: download train2017, val2017 and the annotations from https://cocodataset.org/#download and unpack them so that
  data/coco/annotations/instances_train2017.json exists, or: mim download mmdet --dataset coco2017
  Data of your own: --cfg-options train_dataloader.dataset.data_root=... (docs/own-data.md)
  No data at hand: python tools/shapes.py data/shapes && python tools/train.py configs/shapes/mask_rcnn_r18_asr_se.py"""


class _Settings(DictAction):
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
        '--cfg-options', nargs='+', action=_Settings, default={}, metavar='KEY=VALUE', help='override settings of the config'
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
        raise InputError(f'{path}: {type(error).__name__}: {error}'.splitlines()[0]) from error


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
                    raise InputError(NO_DATA.format(path=path, config=config.filename, key=part))


def _paths(dataset: object, scope: str | None) -> list[str]:
    """The files and folders that a dataset's or an evaluator's config names."""
    if not isinstance(dataset, dict):
        return []
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name]
    if root and not paths and 'type' in dataset:
        with DATASETS.switch_scope_and_registry(scope) as registry:
            downloads = 'download' in inspect.signature(registry.get(dataset['type']).__init__).parameters
        return [] if downloads else [root]
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
        raise InputError(f'{config.filename} does not build: {type(error).__name__}: {error}'.splitlines()[0]) from error
