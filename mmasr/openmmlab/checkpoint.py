"""Read and write checkpoints safely.

A checkpoint is data from a stranger. It is unpickled with torch's restricted unpickler, and what it may name is narrowed down
further, to what a checkpoint of mmengine holds: weights, numbers, text, and the log history.
"""

import contextlib
import errno
import functools
import itertools
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ..errors import InputError
from ..memory import bounded_memory
from .config import walk


def _statistic(owner: object, name: str) -> object:
    """What ``getattr`` may do in a checkpoint: name a statistic of HistoryBuffer, as mmengine's log history does."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise UnpicklingError('GLOBAL builtins.getattr')


class _Dtype:
    """Takes the place of numpy's dtype, whose own ``__setstate__`` makes anything of it, an array of pointers too."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r'b1|[iu][1248]|f[248]', code):
            raise UnpicklingError(f'GLOBAL numpy.dtype.{code}')
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.code = f'{order if order in ("<", ">") else "|"}{self.code}'


class _Array(np.ndarray):
    """An array of plain numbers. It is pickled as numpy's own."""

    def __new__(cls, *_: object) -> '_Array':
        raise UnpicklingError('GLOBAL numpy.ndarray')  # it would take any memory

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise UnpicklingError('GLOBAL numpy.dtype')
        super().__setstate__((version, shape, np.dtype(dtype.code), fortran, data))

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()


def _reconstruct(*_: object) -> _Array:
    return np.empty(0).view(_Array)  # shape and numbers come with the state


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.code)[0]


_STAND_INS = [
    HistoryBuffer,
    (_statistic, 'builtins.getattr'),
    (_Array, 'numpy.ndarray'),
    (_Dtype, 'numpy.dtype'),
    # numpy 1 and 2 name the module differently, and either may have written the file.
    *((_reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]
#: Everything that a checkpoint may name: of torch's own list without what takes memory that is not in the file.
_NAMES = re.compile(
    r'collections (OrderedDict|Counter)|_codecs encode|(builtins|__builtin__) getattr|torch Size'
    r'|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage|torch\._utils _rebuild_(tensor_v2|parameter)'
    r'|numpy (ndarray|dtype)|numpy\._?core\.multiarray (_reconstruct|scalar)|mmengine\.logging\.history_buffer HistoryBuffer'
)
#: What is kept of ``meta`` beside the text of the config, and of what type. mmengine would execute its ``config``.
_META = {
    **dict.fromkeys(('epoch', 'iter', 'seed'), int),
    **dict.fromkeys(('experiment_name', 'time', 'mmengine_version'), str),
    **dict.fromkeys(('dataset_meta', 'mmasr'), dict),
    **dict.fromkeys(('CLASSES', 'PALETTE'), list | tuple),  # MMDetection 2
}
_MOST = 100_000  # entries of one of them
#: What users set to have torch unpickle otherwise; torch takes one of them only.
_FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


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
    path = Path(path)
    try:
        is_zip = _check_file(path)
        # What may be named can still grow: _codecs.encode doubles a text at every call.
        with torch.serialization.safe_globals(_STAND_INS), bounded_memory(2**30 + 4 * path.stat().st_size):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and is_zip)
    except InputError:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # an archive points out of itself
            raise InputError(f'{path}: not a PyTorch checkpoint, or a damaged one') from None
        raise InputError(f'{path}: {error.strerror or error}') from None
    except UnpicklingError as error:
        if found := re.search(r'(?:GLOBAL|global|class|function) ([\w.]+)', str(error)):
            raise _refused(path, found[1]) from None
        raise InputError(f'{path}: not a PyTorch checkpoint, or a damaged one') from None
    except Exception:  # torch has many ways to say that a file is no checkpoint
        raise InputError(f'{path}: not a PyTorch checkpoint, or an empty, truncated or damaged one') from None
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: not a checkpoint but a {type(checkpoint).__name__}')
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    state_dict = checkpoint['state_dict']
    if not isinstance(state_dict, dict) or not state_dict or not all(map(_is_weight, state_dict, state_dict.values())):
        raise InputError(f'{path}: not a checkpoint: it holds no dict of weights')
    if sum(tensor.nbytes for tensor in state_dict.values()) > 16 * path.stat().st_size:  # many names share one tensor
        raise InputError(f'{path}: refused, since its weights take more than 16 times the memory that the file has')
    if all(name.startswith('module.') for name in state_dict):
        state_dict = {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    return {**checkpoint, 'state_dict': state_dict, 'meta': _plain_meta(checkpoint.get('meta'))}


def _check_file(path: Path) -> bool:
    """Check what unpickling would name, and of an archive its checksums and sizes; return whether it is an archive."""
    with path.open('rb') as file:
        is_zip = file.read(4) == b'PK\x03\x04'  # torch's own test
        file.seek(0)
        if not is_zip:
            for _ in range(5):  # magic number, version, system, content and keys of the storages, one pickle each
                _check_names(path, pickletools.genops(file))
            return False
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise InputError(f'{path}: refused, since it unpacks to more than the file has')
            if len({entry.filename for entry in entries}) < len(entries) or (archive.testzip() is not None):
                raise InputError(f'{path}: damaged: its checksums are wrong')
            for entry in entries:
                if entry.filename.endswith('.pkl'):
                    _check_names(path, pickletools.genops(archive.read(entry)))
    return True


def _check_names(path: Path, operations: Iterator) -> None:
    for operation, argument, _ in operations:
        if operation.name == 'GLOBAL' and not _NAMES.fullmatch(argument):
            raise _refused(path, argument.replace(' ', '.'))


def _refused(path: Path, name: str) -> InputError:
    return InputError(f'{path}: refused, since loading it would use {name}; a checkpoint needs weights, numbers and text only')


def _plain_meta(meta: object) -> dict:
    """What is kept of ``meta``: known entries, of plain data."""
    kept = {}
    for key, kind in _META.items() if isinstance(meta, dict) else ():
        with contextlib.suppress(KeyError, ValueError, TypeError, RecursionError):
            entries = itertools.islice(walk(meta[key]), _MOST + 1)  # without end, where a list holds the same one many times
            if sum(1 for _ in entries) <= _MOST and isinstance(value := _plain(meta[key]), kind):
                kept[key] = value
    if isinstance(meta, dict) and isinstance(meta.get('cfg'), str):
        kept['cfg'] = meta['cfg']
    return kept


def _plain(value: object) -> object:
    """Data as plain Python has it; raises ValueError of anything else."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value.isprintable()):
        return value
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    raise ValueError('no plain data')


def _is_weight(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == 'cpu'
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()  # a stride of 0 makes much out of nothing
    )


@contextlib.contextmanager
def only_data() -> Iterator[None]:
    """Whoever loads a checkpoint meanwhile, in this process, gets data only.

    mmengine reads local files with :func:`read_checkpoint`, and every other ``torch.load``, that of a download say, is
    restricted and followed by :func:`_plain_meta`. Otherwise mmengine's loader falls back to unrestricted unpickling.
    """
    schemes, environment = CheckpointLoader._schemes, {name: os.environ.pop(name, None) for name in _FORCED}
    CheckpointLoader._schemes = {prefix: _with_plain_meta(load) for prefix, load in schemes.items()}
    CheckpointLoader.register_scheme('', lambda path, map_location: read_checkpoint(path), force=True)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            yield
    finally:
        CheckpointLoader._schemes = schemes
        for name in _FORCED:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in environment.items() if value is not None})


def _with_plain_meta(load: Callable[..., dict]) -> Callable[..., dict]:
    @functools.wraps(load)
    def loaded(*args: object, **options: object) -> dict:
        checkpoint = load(*args, **options)
        return {**checkpoint, 'meta': _plain_meta(checkpoint['meta'])} if 'meta' in checkpoint else checkpoint

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
