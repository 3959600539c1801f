"""Read a file of ``torch.save`` or safetensors as data: weights, numbers and text.

torch's own restricted reader does not run code from a file either. But it calls functions that double a text,
hashes any key, sets any attribute of a dict, leaves a storage unfilled if its record is missing, and finds
other records in an archive than Python's zipfile, which checks the checksums. Here a pickle calls only
functions of this file. Keys are text or numbers, each tensor must fit its storage, and each storage its
record.
"""

import contextlib
import io
import math
import os
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .containers import find_weights
from .memory import limited_memory

_LARGEST_KEY = 2**31
# The start of a file that is not an archive, as before torch 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_AGAIN = 'read it with torch.load(file, weights_only=True) and save it again with torch.save'


class UnsupportedError(UnpicklingError):
    """A file that is not damaged, but of a kind that is not read. The message says how to save it again."""


def read_torch_file(source: str | Path | BinaryIO, weights_only: bool = False) -> Any:
    """Read a file of ``torch.save`` or safetensors without running anything it contains.

    Args:
        source (str | Path | BinaryIO): The file.
        weights_only (bool): Read only the tensors that :func:`mmasr.untrusted.containers.find_weights`
            returns; in an archive, the others stay zero and take no memory. Default: False.

    Returns:
        Any: Its content, with tensors on the CPU. Ordered dicts have lost their attributes, and an
            ``argparse.Namespace`` is an empty dict.

    Raises:
        OSError: If it cannot be read.
        Exception: Of many classes, if it is not such a file, is damaged, or needs more memory than a file of
            its size can; a ``pickle.UnpicklingError`` with the text ``GLOBAL package.name`` if it names
            anything but data; an :class:`UnsupportedError` if it is of a kind that is not read.
    """
    with contextlib.nullcontext(source) if hasattr(source, 'read') else open(source, 'rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(9)
        file.seek(0)
        # One byte of a pickle makes an object of a hundred bytes.
        with limited_memory(2**30 + 4 * size):
            if start.startswith(b'PK\x03\x04'):
                return _read_archive(file, size, weights_only)
            # The length of the header, of at most 100 MB, and the header.
            return _read_safetensors(file) if start[4:] == b'\0\0\0\0{' else _read_old(file, size)


def _read_safetensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise UnsupportedError('a safetensors file; to read it: pip install safetensors') from error
    return load(file.read())  # a memory map would end the process if the file were cut off


def _read_archive(file: BinaryIO, size: int, weights_only: bool) -> Any:
    with zipfile.ZipFile(file) as archive:
        root, entries = _checked_records(archive, size)
        storages: dict[str, torch.Tensor] = {}

        def storage(kind: str, dtype: torch.dtype, key: str, location: str, count: int) -> torch.Tensor:
            if key not in storages:
                entry = entries[f'{root}data/{key}']
                if entry.file_size != count * dtype.itemsize:
                    raise UnpicklingError('a storage and its record differ in size')
            return _storage(storages, key, dtype, count)

        content = _Unpickler(io.BytesIO(archive.read(f'{root}data.pkl')), storage).load()
        weights = _addresses(content) if weights_only else None
        for key, tensor in storages.items():
            if weights is None or tensor.untyped_storage().data_ptr() in weights:
                _fill_from_record(tensor, entries[f'{root}data/{key}'], file)
        return content


def _fill_from_record(storage: torch.Tensor, entry: zipfile.ZipInfo, file: BinaryIO) -> None:
    """Read a storage from its record, whose checksum was right, without copies."""
    file.seek(entry.header_offset + 26)  # its local header has the lengths of two fields to skip
    file.seek(entry.header_offset + 30 + sum(struct.unpack('<HH', file.read(4))))
    if file.readinto(storage.view(torch.uint8).numpy()) != storage.nbytes:
        raise UnpicklingError('a storage and its record differ in size')


def _storage(storages: dict[str, torch.Tensor], key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
    """Return the storage of a key, which is filled later."""
    if key not in storages:
        # Unlike torch's, numpy's zeros take no memory until they are filled.
        zeros = torch.from_numpy(np.zeros(count * dtype.itemsize, np.uint8))
        storages[key] = zeros.view(dtype) if count else torch.empty(0, dtype=dtype)
    if storages[key].dtype != dtype or storages[key].numel() != count:
        raise UnpicklingError('a storage with two types or sizes')
    return storages[key]


def _checked_records(archive: zipfile.ZipFile, size: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """Return the folder of the records in an archive, and all records by name."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise UnpicklingError('it has several records of one name, which torch does not write')
    if any(name.endswith('/constants.pkl') for name in entries):
        raise UnsupportedError(
            'a TorchScript program; if you trust it: torch.save(torch.jit.load(file).state_dict(), ...)'
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise UnsupportedError(f'its archive was compressed, which torch does not do; {_AGAIN}')
    if sum(entry.file_size for entry in entries.values()) > size or archive.testzip() is not None:
        raise UnpicklingError('its checksums are wrong')
    (root,) = (name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl'))
    if f'{root}byteorder' in entries and archive.read(f'{root}byteorder').decode() != sys.byteorder:
        raise UnsupportedError(f'it was written on a machine with another byte order; {_AGAIN}')
    return root, entries


def _addresses(content: object) -> set[int]:
    """Return the addresses of the storages of all weights."""
    weights = find_weights(content) or {}
    return {weight.untyped_storage().data_ptr() for weight in weights.values()}


def _read_old(file: BinaryIO, size: int) -> Any:
    """Read the format before torch 1.6: five pickles, then the storages in order, without checksums."""
    try:
        is_old = _Unpickler(file).load() == _MAGIC and _Unpickler(file).load() == _PROTOCOL
    except UnsupportedError:  # any file may start with the code of an operation
        is_old = False
    if not is_old:
        raise UnpicklingError('not a file of torch.save')
    _Unpickler(file).load()  # describes the machine that wrote it
    storages: dict[str, torch.Tensor] = {}
    left = size

    def storage(
        kind: str,
        dtype: torch.dtype,
        key: str,
        location: str,
        count: int,
        view: tuple[str, int, int] | None = None,
    ) -> torch.Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise UnpicklingError('storages larger than the file')
        whole = _storage(storages, key, dtype, count)
        return whole if view is None else whole.narrow(0, *view[1:])

    content = _Unpickler(file, storage).load()
    keys = _Unpickler(file).load()
    if sorted(keys) != sorted(storages):
        raise UnpicklingError('storages missing in the file')
    for key in keys:
        _fill(storages[key], file)
    if file.read(1):
        raise UnpicklingError('more data than its storages')
    return content


def _fill(storage: torch.Tensor, file: BinaryIO) -> None:
    """Read a storage of the old format: its number of elements, and their bytes."""
    (count,) = struct.unpack('<q', file.read(8))
    data = file.read(storage.nbytes)
    # Copying a single element would fill the whole storage.
    if count != storage.numel() or len(data) < storage.nbytes:
        raise UnpicklingError('a storage and its record differ in size')
    storage.copy_(_tensor_of(data, storage.dtype))


def _tensor_of(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


class _Dict(dict):
    """Ordered dict without attributes; those of an untrusted one could hide its methods."""

    __slots__ = ()

    def __init__(self, pairs: list = ()) -> None:
        super().__init__()
        for key, value in pairs:  # as Python 2 wrote them
            set_item(self, key, value)


def set_item(target: dict, key: object, value: object) -> None:
    """Set an entry of a dict.

    Args:
        target (dict): The dict.
        key (object): Text or a number. Hashing nested tuples can take forever.
        value (object): Its value.

    Raises:
        UnpicklingError: If the key is anything else.
    """
    if type(target) not in (dict, _Dict) or not (
        type(key) is str or (type(key) is int and abs(key) < _LARGEST_KEY)
    ):
        raise UnpicklingError('a key that is neither text nor a number')
    dict.__setitem__(target, key, value)


def _counter(counts: dict) -> Counter:
    return Counter(dict(counts.items()))


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes, as pickle protocol 2 writes them. Other encodings may double a text, or take forever."""
    if encoding != 'latin1':
        raise UnpicklingError(f'GLOBAL codecs.{encoding}')
    return str.encode(text, 'latin1')


def _empty() -> bytes:
    return b''


def _statistic(owner: object, name: str) -> str:
    """Return a statistic of a HistoryBuffer: mmengine's log histories use ``getattr`` for nothing else."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return name
    raise UnpicklingError('GLOBAL builtins.getattr')


def _size(numbers: tuple) -> torch.Size:
    return torch.Size(numbers)


def _tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
    """Return a tensor with at most as many elements as its storage; a stride of 0 could multiply them."""
    if math.prod(size) > torch.Tensor.numel(storage):
        raise UnpicklingError('a tensor larger than its storage')
    return torch.as_strided(storage, size, stride, offset)


def _parameter(tensor: torch.Tensor, *_: object) -> torch.Tensor:
    return tensor


class _Dtype:
    """Replacement for numpy's dtype, whose ``__setstate__`` could turn it into any type, even pointers."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r'b1|[iu][1248]|f[248]', code):
            raise UnpicklingError(f'GLOBAL numpy.dtype.{code}')
        self.code = code

    def set_state(self, state: tuple) -> None:
        order = state[1]
        self.code = f'{order if order in ("<", ">") else "|"}{self.code}'


class _Array(np.ndarray):
    """Array of plain numbers, pickled like numpy's own."""

    def set_state(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise UnpicklingError('GLOBAL numpy.dtype')
        _check_shape(shape, data)
        self.__setstate__((1, shape, np.dtype(dtype.code), fortran, data))

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()


def _check_shape(shape: tuple, data: bytes) -> None:
    if math.prod(max(length, 1) for length in shape) > max(len(data), 1):
        raise UnpicklingError('an array larger than its data')


def _array(*_: object) -> _Array:
    return np.empty(0).view(_Array)  # shape and data come with the state


def _array_of(data: bytes | bytearray, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """Return an array as numpy writes it in pickle protocol 5."""
    _check_shape(shape, data)
    return np.ndarray(shape, dtype.code, bytearray(data), order=order).view(_Array)


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.code)[0]


def _set_history(buffer: HistoryBuffer, state: dict) -> None:
    logs, counts, most = state['_log_history'], state['_count_history'], state['max_length']
    if not (
        isinstance(logs, _Array)
        and isinstance(counts, _Array)
        and logs.shape == counts.shape
        and type(most) is int
    ):
        raise UnpicklingError('not a history of mmengine')
    buffer._log_history, buffer._count_history, buffer.max_length = np.array(logs), np.array(counts), most


def _ignore(*_: object) -> None:
    """Ignore the attributes of an ordered dict, such as the ``_metadata`` of a state dict."""


_DTYPES = {
    'torch.DoubleStorage': torch.double,
    'torch.FloatStorage': torch.float,
    'torch.HalfStorage': torch.half,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.LongStorage': torch.long,
    'torch.IntStorage': torch.int,
    'torch.ShortStorage': torch.short,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
}
_FUNCTIONS: dict[str, Callable] = {
    'collections.OrderedDict': _Dict,
    'collections.Counter': _counter,
    '_codecs.encode': _encode,
    'builtins.bytes': _empty,
    'builtins.getattr': _statistic,
    'torch.Size': _size,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'numpy.dtype': _Dtype,
    # The module has another name in numpy 1 than in numpy 2, and either may have written the file.
    **dict.fromkeys(('numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct'), _array),
    **dict.fromkeys(('numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar'), _scalar),
    **dict.fromkeys(('numpy.core.numeric._frombuffer', 'numpy._core.numeric._frombuffer'), _array_of),
}
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_STATISTICS = ('min', 'max', 'current', 'mean')
#: Classes of which a pickle may make instances -> replacement.
_CLASSES: dict[object, Callable] = {HistoryBuffer: HistoryBuffer, Namespace: _Dict}
#: Names that a pickle may use but not call.
_NAMED = {
    **_DTYPES,
    'numpy.ndarray': 'numpy.ndarray',
    'argparse.Namespace': Namespace,  # options of a training, by many training scripts
    _HISTORY: HistoryBuffer,
    **{f'{_HISTORY}.{name}': name for name in _STATISTICS},
}
_SET_STATE = {_Dict: _ignore, _Dtype: _Dtype.set_state, _Array: _Array.set_state, HistoryBuffer: _set_history}
#: Pickle operations that ``torch.save`` writes for data, in the protocols 1 to 5.
_OPERATIONS = """
    PROTO FRAME STOP GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID
    MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINFLOAT
    SHORT_BINSTRING SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    MARK EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
""".split()
#: The others that make objects -> what they call.
_REFUSED = {'EMPTY_SET': 'builtins.set', 'FROZENSET': 'builtins.frozenset', 'NEWOBJ_EX': 'object.__new__'}


def _refuse(name: str) -> Callable[[pickle._Unpickler], None]:
    def refused(_: pickle._Unpickler) -> None:
        if name in _REFUSED:
            raise UnpicklingError(f'GLOBAL {_REFUSED[name]}')
        raise UnsupportedError(f'its pickle has the operation {name}, which is not read; {_AGAIN}')

    return refused


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, in its Python version, restricted to data.

    Args:
        file (BinaryIO): File to read from.
        storage (callable, optional): Returns the storage, a flat tensor, for an id in the pickle. Default:
            none.
    """

    dispatch: ClassVar = {
        operation.code.encode('latin1')[0]: _refuse(operation.name) for operation in pickletools.opcodes
    } | {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPERATIONS
    }

    def __init__(self, file: BinaryIO, storage: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(file, encoding='utf-8')
        self.storage = storage

    def find_class(self, module: str, name: str) -> object:
        name = f'{IMPORT_MAPPING.get(module, module)}.{name}'
        if name not in _FUNCTIONS and name not in _NAMED:
            raise UnpicklingError(f'GLOBAL {name}')
        return _FUNCTIONS.get(name) or _NAMED[name]

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        kind, dtype, key, _, count = pid[:5]
        if (
            kind != 'storage'
            or not isinstance(dtype, torch.dtype)
            or type(key) is not str
            or type(count) is not int
        ):
            raise UnpicklingError('not a storage')
        return self.storage(*pid)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        if not any(self.stack[-1] is function for function in _FUNCTIONS.values()):
            raise UnpicklingError('a call of something that is not a function')
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        made = next((make for known, make in _CLASSES.items() if kind is known), None)
        if arguments != () or made is None:
            raise UnpicklingError('GLOBAL object.__new__')
        self.append(made())

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack('<Q', self.read(8))
        data = self.read(length)
        if len(data) < length:  # Python's own leaves the rest zero
            raise UnpicklingError('bytes beyond the end of the file')
        self.append(bytearray(data))

    def load_build(self) -> None:
        state = self.stack.pop()
        _SET_STATE[type(self.stack[-1])](self.stack[-1], state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        set_item(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(self.stack[-1], key, value)

    def load_append(self) -> None:
        item = self.stack.pop()
        list.append(self.stack[-1], item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        list.extend(self.stack[-1], items)

    for _name in ('reduce', 'newobj', 'build', 'setitem', 'setitems', 'append', 'appends', 'bytearray8'):
        dispatch[getattr(pickle, _name.upper())[0]] = vars()[f'load_{_name}']
    del _name
