"""Read and write checkpoints safely.

A checkpoint is data from a stranger. It is unpickled with torch's restricted unpickler and a fixed list of what a
checkpoint of mmengine holds, and never with anything else.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray

from ..errors import InputError


def _statistic(owner: object, name: str) -> object:
    """What ``getattr`` may do in a checkpoint: name a statistic of HistoryBuffer, as mmengine's log history does."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise UnpicklingError('GLOBAL builtins.getattr')


_ALLOWED = [
    HistoryBuffer,
    (_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes['All']},
    # numpy 1 and 2 name the module differently, and either may have written the file.
    *(
        (getattr(multiarray, f), f'numpy.{core}.multiarray.{f}')
        for f in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    ),
]


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint of mmengine, or bare weights, without running anything it contains.

    Args:
        path (str | Path): The file.
        mmap (bool): Map the tensors from the file rather than read them, where its format allows that; the file must stay
            as it is while they are in use. Default: False.

    Returns:
        dict: The checkpoint, its ``state_dict`` stripped of a ``module.`` before every name, its ``meta`` a dict.

    Raises:
        InputError: If the file is missing, unreadable, truncated, no checkpoint, or refers to anything but weights,
            numbers and text.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f'{path}: {error.strerror or error}') from None
    except UnpicklingError as error:
        if found := re.search(r'(?:GLOBAL|global|class|function) ([\w.]+)', str(error)):
            raise InputError(
                f'{path}: refused, since loading it would use {found[1]}; a checkpoint needs weights, numbers and text only'
            ) from None
        raise InputError(f'{path}: not a PyTorch checkpoint, or a damaged one') from None
    except Exception:  # torch has many ways to say that a file is no checkpoint
        raise InputError(f'{path}: not a PyTorch checkpoint, or an empty or truncated one') from None
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: not a checkpoint but a {type(checkpoint).__name__}')
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    state_dict = checkpoint['state_dict']
    if not isinstance(state_dict, dict) or not state_dict or not all(map(_is_weight, state_dict, state_dict.values())):
        raise InputError(f'{path}: not a checkpoint: it holds no dict of weights')
    if all(name.startswith('module.') for name in state_dict):
        state_dict = {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    meta = checkpoint.get('meta')
    return {**checkpoint, 'state_dict': state_dict, 'meta': meta if isinstance(meta, dict) else {}}


def _is_weight(name: object, value: object) -> bool:
    is_tensor = isinstance(name, str) and isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and value.device.type == 'cpu' and not value.is_quantized


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
