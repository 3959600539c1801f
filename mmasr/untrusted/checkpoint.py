"""Read checkpoints as data: weights, numbers and text."""

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.runner import CheckpointLoader

from ..errors import InputError, one_line
from .containers import CONTAINERS, find_weights, without_wrappers
from .reader import UnsupportedError, read_torch_file

#: Entries of ``meta`` that are kept besides the text of the config, and their types. mmengine would execute
#: its ``config``.
_META = {
    **dict.fromkeys(('epoch', 'iter', 'seed'), int),
    **dict.fromkeys(('experiment_name', 'time', 'mmengine_version'), str),
    **dict.fromkeys(('dataset_meta', 'mmasr'), dict),
    **dict.fromkeys(('CLASSES', 'PALETTE'), list | tuple),  # MMDetection 2
}
_MAX_ITEMS = 100_000  # in one of them


def read_checkpoint(path: str | Path, weights_only: bool = False) -> dict:
    """Read a checkpoint of mmengine or other code, or bare weights, without running anything in it.

    Args:
        path (str | Path): The file.
        weights_only (bool): Read only the weights, if the format allows it; all other tensors stay zero.
            Default: False.

    Returns:
        dict: The checkpoint. The names in its ``state_dict`` have lost the prefixes of wrappers, and its
        ``meta`` is a dict of plain data with the entries that mmengine needs. From files of other code, only
        the weights are taken; see :mod:`mmasr.untrusted.containers`.

    Raises:
        InputError: If the file is missing, unreadable, damaged, not a checkpoint, much larger in memory than
            on disk, or if it refers to anything but weights, numbers and text.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):  # a pipe would block
        raise InputError(f'{path}: not a regular file')
    damaged = 'not a PyTorch checkpoint, or an empty, truncated or damaged one'
    try:
        checkpoint = read_torch_file(path, weights_only)
    except OSError as error:
        # EINVAL: an archive points outside itself.
        problem = damaged if error.errno == errno.EINVAL else error.strerror or error
        raise InputError(f'{path}: {problem}') from error
    except UnpicklingError as error:
        if found := re.match(r'GLOBAL ([\w.]+)', str(error)):
            raise InputError(
                f'{path}: refused, since loading it would use {found[1]}; a checkpoint needs only weights, '
                'numbers and text. If you trust the file, load it with its own code and save '
                "{'state_dict': model.state_dict()}"
            ) from error
        if isinstance(error, UnsupportedError):
            raise InputError(f'{path}: {error}') from error
        raise InputError(one_line(f'{path}: not a PyTorch checkpoint, or a damaged one', error)) from error
    except Exception as error:  # a file can fail to be a checkpoint in many ways
        raise InputError(f'{path}: {damaged}') from error
    checkpoint = _checked(checkpoint, path)
    if sum(tensor.nbytes for tensor in checkpoint['state_dict'].values()) > 16 * os.path.getsize(path):
        raise InputError(
            f'{path}: refused, since many of its weights share memory: together they are more than 16 times '
            'as large as the file'
        )
    return checkpoint


def _checked(checkpoint: object, source: str | Path) -> dict:
    """Return what was read from anywhere in the form of :func:`read_checkpoint`."""
    if not isinstance(checkpoint, dict):
        raise InputError(f'{source}: not a checkpoint but a {type(checkpoint).__name__}')
    weights = find_weights(checkpoint)
    if weights is None:
        known = f'{", ".join(CONTAINERS[:-1])} or {CONTAINERS[-1]}'
        raise InputError(
            f'{source}: not a checkpoint: it contains no dict of weights, neither itself nor as its entry '
            f"{known}; save it as {{'state_dict': model.state_dict()}}"
        )
    named = without_wrappers(weights, checkpoint)
    if weights is not checkpoint.get('state_dict'):
        checkpoint = {}
    return {**checkpoint, 'state_dict': named, 'meta': _plain_meta(checkpoint.get('meta'))}


def _plain_meta(meta: object) -> dict:
    """Return the known entries of ``meta`` that are plain data."""
    plain = {}
    for key, kind in _META.items() if isinstance(meta, dict) else ():
        with contextlib.suppress(KeyError, ValueError, RecursionError):
            if isinstance(value := _plain(meta[key], [_MAX_ITEMS]), kind):
                plain[key] = value
    if isinstance(meta, dict) and isinstance(meta.get('cfg'), str):
        plain['cfg'] = meta['cfg']
    return plain


def _plain(value: object, remaining: list[int]) -> object:
    """Convert data to plain Python.

    Args:
        value (object): Data from a checkpoint.
        remaining (list[int]): Number of items that it may have, as the only item of a list, which is counted
            down. A list can contain the same list many times, and so be endless.

    Raises:
        ValueError: If there is anything else, or more.
    """
    remaining[0] -= max(1, value.size) if isinstance(value, np.ndarray) else 1
    if remaining[0] < 0:
        raise ValueError('too many items')
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and value.isprintable())
    ):
        return value
    if isinstance(value, list | tuple):
        return type(value)([_plain(item, remaining) for item in value])
    if isinstance(value, dict):
        return {_plain(key, remaining): _plain(item, remaining) for key, item in value.items()}
    raise ValueError('not plain data')


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """While active, mmengine's loader (process-wide) reads data only, like :func:`read_checkpoint`.

    Otherwise it falls back to unrestricted unpickling, for files as well as for addresses.
    """
    schemes = CheckpointLoader._schemes
    CheckpointLoader._schemes = {
        **{prefix: _reading_data(load) for prefix, load in schemes.items()},
        '': lambda path, map_location=None: read_checkpoint(os.path.expanduser(path)),
    }
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes


def _reading_data(load: Callable[..., object]) -> Callable[..., dict]:
    """Wrap a loader of mmengine so that its ``torch.load`` reads data only."""

    @functools.wraps(load)
    def loaded(path: str, map_location: object = None) -> dict:
        torch_load = torch.load
        torch.load = lambda f, *_, **__: read_torch_file(f)
        try:
            return _checked(load(path, map_location), path)
        finally:
            torch.load = torch_load

    return loaded
