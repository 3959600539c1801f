"""Command-line options that several tools share."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from ..errors import as_input_error
from .config import load_config


class Settings(DictAction):
    """Action for ``--cfg-options`` that reports unreadable values in one line."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Parse the values; see :class:`argparse.Action`."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError):
            given = ' '.join(values)
            parser.error(
                f'{option_string} takes KEY=VALUE with values such as 3, text, [1,2] or "(1,2)", not {given}'
            )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config',
    )


class SeveralSettings(argparse.Action):
    """Action for an option that can be repeated, each time with settings like those of ``--cfg-options``."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Append the parsed settings; see :class:`argparse.Action`."""
        parsed = argparse.Namespace()
        Settings([option_string], 'settings')(parser, parsed, values, option_string)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), parsed.settings])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share. MMDetection's tools use the same names."""
    parser.add_argument(
        '--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)'
    )
    add_settings(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_checkpoint(parser: argparse.ArgumentParser, checkpoint: str, config: str) -> None:
    """Add a checkpoint that may be untrusted, ``--config`` and ``--trust-imports``.

    Args:
        parser (ArgumentParser): Parser of the tool.
        checkpoint (str): Description of the checkpoint.
        config (str): Description of its config.
    """
    parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument(
        '--config', help=f'{config} (default: the config in the checkpoint, which is read as data)'
    )
    parser.add_argument(
        '--trust-imports',
        action='store_true',
        help="import, and thus run, any module that the checkpoint's own config asks for",
    )


def add_output(parser: argparse.ArgumentParser, metavar: str, description: str) -> None:
    """Add ``--out`` and ``--force`` for a tool that replaces existing files only on request.

    Args:
        parser (ArgumentParser): Parser of the tool.
        metavar (str): Kind of path that ``--out`` takes.
        description (str): Contents of the output, and its default path.
    """
    parser.add_argument('--out', type=Path, metavar=metavar, help=description)
    parser.add_argument('--force', action='store_true', help='replace existing files')


def config_from_arguments(args: argparse.Namespace) -> Config:
    """Load the config that the arguments name, and apply their overrides.

    Args:
        args (Namespace): ``config``, and the arguments of :func:`add_arguments`.

    Returns:
        Config: The config.

    Raises:
        InputError: If the config cannot be loaded, or a setting does not fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config)
    config.launcher = args.launcher
    with as_input_error(f'`cfg_options` do not fit {args.config}'):
        config.merge_from_dict(args.cfg_options)
    if args.work_dir:
        config.work_dir = args.work_dir
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return config
