"""Building what a config asks for: runners and models, and loading their weights."""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from ..errors import InputError, one_line, some
from .checkpoint import read_checkpoint
from .config import load_config, without_downloads


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
