"""Read and write checkpoints safely. A checkpoint is data from a stranger."""

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
from .torch_file import read_torch_file

#: What is kept of ``meta`` beside the text of the config, and of what type. mmengine would execute its ``config``.
_META = {
    **dict.fromkeys(('epoch', 'iter', 'seed'), int),
    **dict.fromkeys(('experiment_name', 'time', 'mmengine_version'), str),
    **dict.fromkeys(('dataset_meta', 'mmasr'), dict),
    **dict.fromkeys(('CLASSES', 'PALETTE'), list | tuple),  # MMDetection 2
}
_MOST = 100_000  # entries of one of them


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint of mmengine, or bare weights, without running anything it contains.

    Args:
        path (str | Path): The file.
        mmap (bool): Map the tensors from the file rather than read them, where its format allows that; the file must stay
            as it is while they are in use. Default: False.

    Returns:
        dict: The checkpoint, its ``state_dict`` stripped of a ``module.`` before every name, its ``meta`` a dict of plain data
        with the entries that mmengine needs.

    Raises:
        InputError: If the file is missing, unreadable, damaged, no checkpoint, larger once unpacked than it is, or refers to
            anything but weights, numbers and text.
    """
    try:
        checkpoint = read_torch_file(path, mmap)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an archive points out of itself
            raise InputError(f'{path}: not a PyTorch checkpoint, or a damaged one') from None
        raise InputError(f'{path}: {error.strerror or error}') from None
    except UnpicklingError as error:
        if found := re.match(r'GLOBAL ([\w.]+)', str(error)):
            raise InputError(
                f'{path}: refused, since loading it would use {found[1]}; a checkpoint needs weights, numbers and text only'
            ) from None
        raise InputError(one_line(f'{path}: not a PyTorch checkpoint, or a damaged one', error)) from None
    except Exception:  # there are many ways to be no checkpoint
        raise InputError(f'{path}: not a PyTorch checkpoint, or an empty, truncated or damaged one') from None
    checkpoint = _checked(checkpoint, path)
    if sum(tensor.nbytes for tensor in checkpoint['state_dict'].values()) > 16 * os.path.getsize(path):
        raise InputError(
            f'{path}: refused, since many of its weights share memory, and take more than 16 times what the file has'
        )
    return checkpoint


def _checked(checkpoint: object, source: str | Path) -> dict:
    """What was read from somewhere, as :func:`read_checkpoint` returns it."""
    if not isinstance(checkpoint, dict):
        raise InputError(f'{source}: not a checkpoint but a {type(checkpoint).__name__}')
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    state_dict = checkpoint['state_dict']
    if not isinstance(state_dict, dict) or not state_dict or not all(map(_is_weight, state_dict, state_dict.values())):
        raise InputError(f'{source}: not a checkpoint: it holds no dict of weights')
    prefix = 'module.' if all(name.startswith('module.') for name in state_dict) else ''
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return {**checkpoint, 'state_dict': state_dict, 'meta': _plain_meta(checkpoint.get('meta'))}


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and name.isprintable() and isinstance(value, torch.Tensor)


def _plain_meta(meta: object) -> dict:
    """What is kept of ``meta``: known entries, of plain data."""
    kept = {}
    for key, kind in _META.items() if isinstance(meta, dict) else ():
        with contextlib.suppress(KeyError, ValueError, RecursionError):
            if isinstance(value := _plain(meta[key], [_MOST]), kind):
                kept[key] = value
    if isinstance(meta, dict) and isinstance(meta.get('cfg'), str):
        kept['cfg'] = meta['cfg']
    return kept


def _plain(value: object, left: list[int]) -> object:
    """Data as plain Python has it.

    Args:
        value (object): What was read.
        left (list[int]): How many entries there may be, in a list of its own that is counted down: a list can hold the same one
            many times, and so without end.

    Raises:
        ValueError: If there is anything else, or more.
    """
    left[0] -= max(1, value.size) if isinstance(value, np.ndarray) else 1
    if left[0] < 0:
        raise ValueError('too many entries')
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value.isprintable()):
        return value
    if isinstance(value, list | tuple):
        return type(value)([_plain(item, left) for item in value])
    if isinstance(value, dict):
        return {_plain(key, left): _plain(item, left) for key, item in value.items()}
    raise ValueError('no plain data')


@contextlib.contextmanager
def only_data() -> Iterator[None]:
    """Whoever has mmengine load a checkpoint meanwhile, in this process, gets data only, as of :func:`read_checkpoint`.

    Otherwise mmengine's loader falls back to unrestricted unpickling, for files as for what comes from elsewhere.
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
    """A loader of mmengine for which ``torch.load`` reads data only."""

    @functools.wraps(load)
    def loaded(path: str, map_location: object = None) -> dict:
        torch_load = torch.load
        torch.load = lambda f, *_, **__: read_torch_file(f)
        try:
            return _checked(load(path, map_location), path)
        finally:
            torch.load = torch_load

    return loaded


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Save a checkpoint.

    Raises:
        OSError: If it can't be written. Of a full disk torch itself says only that a file has an unexpected position.
    """
    with path.open('wb') as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
