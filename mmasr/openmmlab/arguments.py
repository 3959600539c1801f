"""The options that several tools have, each in one place."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from .config import load_config


class Settings(DictAction):
    """Values of ``--cfg-options``, refused in a line of text where they can't be read."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            parser.error(
                f'{option_string} takes KEY=VALUE with values such as 3, text, [1,2] or "(1,2)", not {" ".join(values)}'
            )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=Settings, default={}, metavar='KEY=VALUE', help='override settings of the config'
    )


class SeveralSettings(argparse.Action):
    """Values of an option that is given several times, each time with settings as of ``--cfg-options``."""

    def __call__(self, parser, namespace, values, option_string=None):
        one = argparse.Namespace()
        Settings([option_string], 'one')(parser, one, values, option_string)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), one.one])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common, named as MMDetection names them."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    add_settings(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_checkpoint(parser: argparse.ArgumentParser, checkpoint: str, config: str) -> None:
    """Add a checkpoint that may be a stranger's, ``--config`` and ``--trust-imports``.

    Args:
        parser (ArgumentParser): Of the tool.
        checkpoint (str): What it may be.
        config (str): What its config is.
    """
    parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument('--config', help=f'{config} (default: the one in the checkpoint, read as data)')
    parser.add_argument(
        '--trust-imports', action='store_true', help="import, and so run, any module that the checkpoint's own config asks for"
    )


def add_output(parser: argparse.ArgumentParser, metavar: str, description: str) -> None:
    """Add ``--out`` and ``--force`` of the tools that replace nothing unasked.

    Args:
        parser (ArgumentParser): Of the tool.
        metavar (str): What kind of path ``--out`` is.
        description (str): What is written there, and where by default.
    """
    parser.add_argument('--out', type=Path, metavar=metavar, help=description)
    parser.add_argument('--force', action='store_true', help='replace what is there')


def config_from_arguments(args: argparse.Namespace) -> Config:
    """Load the config that the arguments name, with what they override.

    Args:
        args (Namespace): With ``config`` and what :func:`add_arguments` adds.

    Returns:
        Config: The config.

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
