"""The reader returns the same as torch.load, and refuses anything but data."""

import argparse
import codecs
import collections
import copyreg
import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from helpers import Call
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmasr.untrusted.reader import UnsupportedError, _Unpickler, read_torch_file

DTYPES = ['float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool']
FORMATS = pytest.mark.parametrize('old_format', [False, True], ids=['zip', 'old format'])


def save(path, content, old_format=False, protocol=2):
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old_format)
    return path


def same(a, b):
    """Return whether two pieces of data are equal, also in type; ordered dicts may have become dicts."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@FORMATS
@pytest.mark.parametrize('protocol', [1, 2, 3, 4, 5])
def test_it_reads_the_same_as_torch(tmp_path, old_format, protocol):
    whole = torch.randn(6, 4)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    content = {
        'kinds': [torch.arange(5).to(getattr(torch, dtype)) for dtype in DTYPES],
        'shapes': [
            torch.tensor(3.0),
            torch.zeros(0),
            torch.zeros(0, 4),
            whole,
            whole[1:3],
            whole.t(),
            whole[:, 2],
        ],
        'state_dict': network.state_dict(),
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'size': torch.Size([1, 2]),
        'numbers': [1, -1, 255, 70_000, 2**40, -(2**70), 1.5, float('inf'), True, False, None],
        'text': ['', 'a' * 300, 'ä', b'', b'\x00\xff' * 300],
        'nested': {'a': {1: ((), (1,), (1, 2, 3, 4), [])}},
        'arrays': [
            np.arange(3),
            np.ones((2, 3), np.float32).T,
            np.zeros((0,)),
            np.array(2),
            np.bool_(True),
            np.float64(3),
        ],
        'milestones': collections.Counter([1, 1, 2]),
    }
    read = read_torch_file(save(tmp_path / 'a.pth', content, old_format, protocol))
    assert same(torch.load(tmp_path / 'a.pth', weights_only=False), read)
    assert read['shapes'][3].untyped_storage().data_ptr() == read['shapes'][4].untyped_storage().data_ptr()


def test_only_the_weights_are_read_if_nothing_else_is_needed(tmp_path):
    shared = torch.randn(4)
    content = {
        'state_dict': {
            'a': torch.randn(3, 4).t(),
            'b': shared[1:],
            'c': torch.tensor(2),
            'd': torch.zeros(0),
        },
        'optimizer': [torch.ones(3), shared],
    }
    read = read_torch_file(save(tmp_path / 'a.pth', content, False), weights_only=True)
    assert same(content['state_dict'], read['state_dict'])
    assert torch.equal(read['optimizer'][0], torch.zeros(3))
    assert torch.equal(read['optimizer'][1], shared)
    weights = content['state_dict']
    assert same(weights, read_torch_file(save(tmp_path / 'b.pth', weights, False), weights_only=True))


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    """A memory map would end the process."""
    path = save(tmp_path / 'a.pth', {'state_dict': {'a': torch.randn(1_000_000)}}, False)
    load = _Unpickler.load

    def cut_off(self):
        content = load(self)
        os.truncate(path, 100_000)
        return content

    monkeypatch.setattr(_Unpickler, 'load', cut_off)
    with pytest.raises((struct.error, UnpicklingError)):
        read_torch_file(path, weights_only=True)


def test_what_was_read_stays_when_the_file_changes(tmp_path):
    weight = torch.randn(1_000_000)
    path = save(tmp_path / 'a.pth', {'state_dict': {'a': weight}}, False)
    read = read_torch_file(path, weights_only=True)
    os.truncate(path, 0)
    assert torch.equal(read['state_dict']['a'], weight)


@FORMATS
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_history_is_read_without_its_statistics(tmp_path, old_format, protocol):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    read = read_torch_file(save(tmp_path / 'a.pth', {'history': history}, old_format, protocol))['history']
    assert type(read) is HistoryBuffer
    assert (read.mean(), read.max_length) == (1.5, history.max_length)
    read.update(3.0)
    assert read.current() == 3


def shared(make, depth):
    """Return nested containers with 2**depth items, which take a few bytes per level in the file."""
    value = make([])
    for _ in range(depth):
        value = make([value, value])
    return value


def doubled(times):
    """Return one byte that unpickling doubles this many times."""
    value = b'x'
    for _ in range(times):
        value = Call(codecs.encode, value, 'hex')
    return value


class New(Call):
    """Unpickles as a new object of a class, without calling its constructor."""

    __class__ = property(lambda self: self.reduced[1][0])  # pickle compares it with the class to create


def with_attribute(**attributes):
    """Return an ordered dict with attributes that hide its methods."""
    value = collections.OrderedDict(weight=torch.zeros(2))
    value.__dict__.update(attributes)
    return value


def history(**state):
    value = HistoryBuffer([1.0], [1])
    value.__dict__.update(state)
    return value


#: Anything but data, and data that takes more memory than the file.
ATTACKS = {
    'a text that doubles': doubled(40),
    'a slow encoding': Call(codecs.encode, 'ä' * 10_000, 'punycode'),
    'an array': Call(np.ndarray, (2**30,)),
    'a new array': New(copyreg.__newobj__, np.ndarray, (2**30,)),
    'an array without numbers': np.zeros((2 * 10**7, 0)),
    'an array of objects': np.array([len], dtype=object),
    'bytes': Call(bytearray, 2**30),
    'an expanded tensor': torch.zeros(1).expand(2**40),
    'a tensor whose size overflows': torch.zeros(1, dtype=torch.float64).expand(2**61),
    # torch has uint16 since 2.3.
    'a tensor of a dtype without a storage': torch.zeros(2, dtype=getattr(torch, 'uint16', torch.complex64)),
    'a complex tensor': torch.zeros(2, dtype=torch.complex64),
    'a set': {1},
    'a function': len,
    'a history of lists': history(_log_history=[1.0]),
    'a history of two lengths': history(_log_history=np.zeros(2)),
    'a dict with a key that never ends': {'x': Call(dict, [[shared(tuple, 60), 1]])},
}


@FORMATS
@pytest.mark.parametrize('name', ATTACKS)
def test_only_data_is_read_in_proportion_to_the_file(tmp_path, name, old_format):
    path = save(tmp_path / 'a.pth', {'x': ATTACKS[name]}, old_format)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(Exception, match=r'.'):  # the class depends on the check that finds it
        read_torch_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * 2**20  # KiB
    assert time.monotonic() - start < 10


@FORMATS
@pytest.mark.parametrize('name', ['values', 'keys', '__setstate__'])
def test_a_dict_keeps_its_methods(tmp_path, name, old_format):
    content = with_attribute(**{name: collections.OrderedDict})
    read = read_torch_file(save(tmp_path / 'a.pth', content, old_format))
    assert [tensor.tolist() for tensor in read.values()] == [[0, 0]]
    assert not hasattr(read, '__dict__')


def archive(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, data in records:
            file.writestr(f'archive/{name}', data)
    return path


def operations(*parts):
    """Return a pickle of these operations."""
    return b''.join([pickle.PROTO, b'\x02', *parts, pickle.STOP])


def name(module, attribute):
    return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()


def text(value):
    return pickle.BINUNICODE + len(value).to_bytes(4, 'little') + value.encode()


def storage(key='0', count=4, kind='storage', dtype='FloatStorage'):
    """Return the id of a storage of this many numbers."""
    number = pickle.BININT + count.to_bytes(4, 'little', signed=True)
    return pickle.MARK + text(kind) + name('torch', dtype) + text(key) + text('cpu') + number + pickle.TUPLE


def tuple_of(*numbers):
    return (
        pickle.MARK
        + b''.join(pickle.BININT + n.to_bytes(4, 'little', signed=True) for n in numbers)
        + pickle.TUPLE
    )


def tensor(size=(4,), stride=(1,), offset=0, **of):
    """Return the operations that make a tensor over a storage."""
    arguments = (
        storage(**of) + pickle.BINPERSID + tuple_of(offset)[1:-1] + tuple_of(*size) + tuple_of(*stride)
    )
    arguments += pickle.NEWFALSE + pickle.EMPTY_DICT
    return name('torch._utils', '_rebuild_tensor_v2') + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE


FLOATS = np.arange(4, dtype=np.float32).tobytes()
GOOD = [('data.pkl', operations(tensor())), ('data/0', FLOATS)]


def test_a_handmade_file_is_read(tmp_path):
    path = archive(tmp_path / 'a.pth', [*GOOD, ('version', b'3')])
    assert torch.equal(read_torch_file(path), torch.arange(4.0))
    assert torch.equal(torch.load(path), torch.arange(4.0))


#: Operations that torch.save does not write in this way.
PICKLES = {
    'bytes beyond the file': pickle.BYTEARRAY8 + (2**28).to_bytes(8, 'little') + b'x',
    'a set': pickle.EMPTY_SET,
    'a frozen set': pickle.MARK + pickle.FROZENSET,
    'a buffer elsewhere': pickle.NEXT_BUFFER,
    'an instance with options': name('argparse', 'Namespace')
    + pickle.EMPTY_TUPLE
    + pickle.EMPTY_DICT
    + pickle.NEWOBJ_EX,
    'an attribute of a class': text('mmengine.logging.history_buffer')
    + text('HistoryBuffer.__init__')
    + pickle.STACK_GLOBAL,
    'an array larger than its data': name('numpy.core.numeric', '_frombuffer')
    + pickle.MARK
    + (pickle.BINBYTES + (4).to_bytes(4, 'little') + FLOATS[:4])
    + (name('numpy', 'dtype') + text('f4') + pickle.TUPLE1 + pickle.REDUCE)
    + tuple_of(2)
    + text('C')
    + pickle.TUPLE
    + pickle.REDUCE,
    'a tensor beyond its storage': tensor(offset=1),
    'a tensor before its storage': tensor(offset=-1),
    'a stride beyond the storage': tensor(size=(2, 2), stride=(3, 1)),
    'a stride backwards': tensor(size=(2,), stride=(-1,), offset=3),
    'a negative size': tensor(size=(-2, -2), stride=(2, 1)),
    'a storage larger than its record': tensor(count=5),
    'a storage smaller than its record': tensor(count=3),
    'a negative storage': tensor(count=-1),
    'a storage without a record': tensor(key='1'),
    'a storage elsewhere': tensor(key='../../data/0'),
    'another kind of id': tensor(kind='module'),
    'a call of data': text('x') + pickle.EMPTY_TUPLE + pickle.REDUCE,
    'a call of a type': name('torch', 'FloatStorage') + pickle.EMPTY_TUPLE + pickle.REDUCE,
    'a call of a class': name('mmengine.logging.history_buffer', 'HistoryBuffer')
    + pickle.EMPTY_TUPLE
    + pickle.REDUCE,
    'a name from the stack': text('os') + text('system') + pickle.STACK_GLOBAL,
    'an old instance': pickle.MARK + pickle.INST + b'os\nsystem\n',
    'an extension': pickle.EXT1 + b'\x01',
    'an entry of a list': pickle.EMPTY_LIST + text('x') + text('y') + pickle.SETITEM,
    'an item of a dict': pickle.EMPTY_DICT + text('x') + pickle.APPEND,
    'a tuple as a key': pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + text('y') + pickle.SETITEM,
    'a large key': pickle.EMPTY_DICT
    + pickle.LONG1
    + b'\x08'
    + b'\xff' * 7
    + b'\x0f'
    + text('y')
    + pickle.SETITEM,
    'the state of a list': pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.BUILD,
    'the state of a tensor': tensor() + pickle.EMPTY_DICT + pickle.BUILD,
    'nothing': b'',
}


@pytest.mark.parametrize('name', PICKLES)
def test_operations_that_torch_does_not_write_are_refused(tmp_path, name):
    path = archive(tmp_path / 'a.pth', [('data.pkl', operations(PICKLES[name])), ('data/0', FLOATS)])
    with pytest.raises(Exception, match=r'.'):
        read_torch_file(path)


def test_the_options_of_a_training_script_are_left_out(tmp_path):
    path = save(tmp_path / 'a.pth', {'args': argparse.Namespace(lr=0.1), 'model': {'a': torch.ones(2)}})
    assert read_torch_file(path)['args'] == {}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (pickle.MARK + text('a') + pickle.DUP, 'its pickle has the operation DUP, which is not read'),
        (pickle.BINSTRING + (0).to_bytes(4, 'little'), 'the operation BINSTRING'),
    ],
    ids=['DUP', 'BINSTRING'],
)
def test_an_operation_that_is_not_read_is_named(tmp_path, content, message):
    path = archive(tmp_path / 'a.pth', [('data.pkl', operations(content))])
    with pytest.raises(UnsupportedError, match=f'{message}.*save it again with torch.save'):
        read_torch_file(path)


def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'a.pt')
    with pytest.raises(UnsupportedError, match='a TorchScript program'):
        read_torch_file(tmp_path / 'a.pt')


@pytest.mark.parametrize(
    ('records', 'compression', 'message'),
    [
        (GOOD, zipfile.ZIP_DEFLATED, 'its archive was compressed'),
        ([*GOOD, ('byteorder', b'big')], zipfile.ZIP_STORED, 'on a machine with another byte order'),
    ],
    ids=['compressed', 'byte order'],
)
def test_a_whole_archive_that_is_not_read_is_not_called_damaged(tmp_path, records, compression, message):
    path = archive(tmp_path / 'a.pth', records, compression)
    with pytest.raises(UnsupportedError, match=f'{message}.*save it again with torch.save'):
        read_torch_file(path)


def test_safetensors_are_read(tmp_path):
    path = tmp_path / 'a.safetensors'
    content = {
        **{dtype: torch.arange(5).to(getattr(torch, dtype)) for dtype in DTYPES},
        'scalar': torch.tensor(3.0),
        'empty': torch.zeros(0, 4),
        'image': torch.randn(2, 3, 4),
    }
    save_file(content, path, {'format': 'pt'})
    read = read_torch_file(path)
    assert same({name: content[name] for name in read}, read)
    assert read.keys() == content.keys()
    path.write_bytes(b'')
    assert read['int64'].tolist() == [0, 1, 2, 3, 4]


def safetensors_file(header, data=FLOATS):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(len(header).to_bytes(8, 'little') + header + data)


def test_a_handmade_safetensors_file_is_read():
    header = {'a': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}}
    assert read_torch_file(safetensors_file(header))['a'].tolist() == [0, 1, 2, 3]


SAFETENSORS = {
    'too short': ({'a': {'dtype': 'F32', 'shape': [5], 'data_offsets': [0, 20]}}, FLOATS),
    'too long': ({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12]}}, FLOATS),
    'a larger shape': ({'a': {'dtype': 'F32', 'shape': [5], 'data_offsets': [0, 16]}}, FLOATS),
    'shared data': (
        {name: {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]} for name in 'ab'},
        FLOATS,
    ),
    'an overflow': ({'a': {'dtype': 'F32', 'shape': [2**33, 2**33], 'data_offsets': [0, 16]}}, FLOATS),
    'another type': ({'a': {'dtype': 'O8', 'shape': [2], 'data_offsets': [0, 16]}}, FLOATS),
    'no header': (b'{', FLOATS),
    'deeply nested': (b'{"a":' * 100_000, FLOATS),
}


@pytest.mark.parametrize('name', SAFETENSORS)
def test_damaged_safetensors_are_refused(name):
    with pytest.raises(Exception, match=r'.'):
        read_torch_file(safetensors_file(*SAFETENSORS[name]))


def test_safetensors_without_the_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(UnsupportedError, match='pip install safetensors'):
        read_torch_file(safetensors_file({}))


ARCHIVES = {
    'compressed': lambda path: archive(path, GOOD, zipfile.ZIP_DEFLATED),
    'another name of the pickle': lambda path: archive(path, [('DATA.PKL', GOOD[0][1]), GOOD[1]]),
    'two pickles': lambda path: archive(path, [*GOOD, ('b/data.pkl', GOOD[0][1])]),
    'two records of a name': lambda path: archive(path, [*GOOD, GOOD[1]]),
    'another byte order': lambda path: archive(path, [*GOOD, ('byteorder', b'big')]),
    'no pickle': lambda path: archive(path, GOOD[1:]),
    'no storage': lambda path: archive(path, GOOD[:1]),
    'a changed byte': lambda path: path.write_bytes(
        archive(path, GOOD).read_bytes().replace(FLOATS, FLOATS[::-1])
    ),
}


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', ARCHIVES)
def test_an_archive_that_torch_does_not_write_is_refused(tmp_path, name):
    ARCHIVES[name](tmp_path / 'a.pth')
    with pytest.raises(Exception, match=r'.'):
        read_torch_file(tmp_path / 'a.pth')


def old_file(keys, *records, content=None):
    """Return a file of the old format with one tensor, or other content."""
    number = operations(pickle.LONG1 + b'\x0a' + (0x1950A86A20F9469CFC6C).to_bytes(10, 'little'))
    parts = [
        number,
        pickle.dumps(1001, 2),
        pickle.dumps({}, 2),
        operations(content or tensor()),
        pickle.dumps(keys, 2),
        *records,
    ]
    return io.BytesIO(b''.join(parts))


LENGTH = (4).to_bytes(8, 'little')


def test_a_handmade_old_file_is_read():
    assert torch.equal(read_torch_file(old_file(['0'], LENGTH, FLOATS)), torch.arange(4.0))


@pytest.mark.parametrize(
    ('keys', 'records'),
    [
        ([], []),  # the tensor would be uninitialized memory
        (['0'], [LENGTH, FLOATS[:-1]]),
        (['0'], [(3).to_bytes(8, 'little'), FLOATS]),
        (['0', '0'], [LENGTH, FLOATS, LENGTH, FLOATS]),
        (['1'], [LENGTH, FLOATS]),
        (['0'], [LENGTH, FLOATS[:4]]),  # would be copied to all elements
        (['0'], [LENGTH, FLOATS, b'\0']),
    ],
    ids=['no storage', 'too short', 'another length', 'twice', 'another', 'one element', 'too long'],
)
def test_an_old_file_without_all_its_storages_is_refused(keys, records):
    with pytest.raises(Exception, match=r'.'):
        read_torch_file(old_file(keys, *records))


@FORMATS
@pytest.mark.parametrize('of', [{'dtype': 'IntStorage'}, {'count': 3, 'size': (3,)}], ids=['types', 'sizes'])
def test_a_storage_with_two_types_or_sizes_is_refused(tmp_path, old_format, of):
    for other, is_good in (({}, True), (of, False)):
        pair = pickle.EMPTY_LIST + pickle.MARK + tensor() + tensor(**other) + pickle.APPENDS
        if old_format:
            file = old_file(['0'], LENGTH, FLOATS, content=pair)
        else:
            file = archive(tmp_path / 'a.pth', [('data.pkl', operations(pair)), ('data/0', FLOATS)])
        if is_good:
            assert [t.tolist() for t in read_torch_file(file)] == [[0, 1, 2, 3]] * 2
        else:
            with pytest.raises(pickle.UnpicklingError, match='two types or sizes'):
                read_torch_file(file)


def test_a_tar_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / 'a.pth', 'w') as file:
        file.addfile(tarfile.TarInfo('storages'), io.BytesIO(b''))
    with pytest.raises(Exception, match=r'.'):
        read_torch_file(tmp_path / 'a.pth')
