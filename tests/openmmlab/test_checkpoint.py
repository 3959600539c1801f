"""A checkpoint is data from a stranger: what is read, what is refused, and that nothing in it runs."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Call, Touch, full_disk
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading

from mmasr.errors import InputError
from mmasr.files import temporary_files
from mmasr.openmmlab.checkpoint import only_data, read_checkpoint, write_checkpoint

WEIGHTS = {'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)}


@pytest.mark.parametrize('mmap', [False, True], ids=['read', 'mmap'])
def test_a_runners_checkpoint(tmp_path, mmap):
    path = tmp_path / 'epoch_1.pth'
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.mean()
    history._statistics_methods = dict(history._statistics_methods)  # as mmengine's message hub pickles it
    checkpoint = {
        'meta': {'cfg': 'a = 1', 'seed': np.int64(3), 'dataset_meta': {'classes': ('a', 'b'), 'palette': np.ones((2, 3))}},
        'state_dict': WEIGHTS,
        'message_hub': {'log_scalars': {'loss': history}},
        'optimizer': {'state': {0: {'momentum_buffer': torch.ones(2, 3)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
    }
    torch.save(checkpoint, path)
    read = read_checkpoint(path, mmap=mmap)
    assert read['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert np.array_equal(read['meta']['dataset_meta']['palette'], np.ones((2, 3)))
    assert read['meta']['seed'] == 3
    assert torch.equal(read['state_dict']['conv.weight'], WEIGHTS['conv.weight'])
    assert read['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert read['optimizer']['param_groups'][0]['lr'] == 0.1


@pytest.mark.parametrize('old_format', [False, True], ids=['zip', 'old format'])
def test_bare_weights_and_the_prefix_of_a_wrapper(tmp_path, old_format):
    path = tmp_path / 'weights.pth'
    torch.save({f'module.{name}': t for name, t in WEIGHTS.items()}, path, _use_new_zipfile_serialization=not old_format)
    read = read_checkpoint(path, mmap=True)
    assert read['meta'] == {}
    assert list(read['state_dict']) == list(WEIGHTS)


# What is left of a good checkpoint, or takes its place.
BROKEN = {
    'empty': lambda good: b'',
    'text': lambda good: b'hello, world',
    'truncated': lambda good: good[: len(good) // 2],
    'short': lambda good: good[:10],
    'image': lambda good: b'\x89PNG\r\n\x1a\n' + bytes(100),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    path = tmp_path / f'{name}.pth'
    torch.save({'state_dict': {'weight': torch.randn(1000)}}, path)
    path.write_bytes(BROKEN[name](path.read_bytes()))
    with pytest.raises(InputError, match=rf'{name}\.pth: not a PyTorch checkpoint') as caught:
        read_checkpoint(path, mmap=True)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'a list'),
        ({'state_dict': {}}, 'no dict of weights'),
        ({'epoch': 3}, 'no dict of weights'),
        ({'state_dict': {3: torch.zeros(1)}}, 'no dict of weights'),
    ],
    ids=['a list', 'an empty state_dict', 'no tensor', 'a number as a name'],
)
def test_content_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(InputError, match=f'not a checkpoint.*{message}'):
        read_checkpoint(tmp_path / 'other.pth')


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match=r'none\.pth: No such file or directory'):
        read_checkpoint(tmp_path / 'none.pth')


def test_a_folder_is_said(tmp_path):
    with pytest.raises(InputError, match='Is a directory'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('old_format', [False, True], ids=['zip', 'old format'])
@pytest.mark.parametrize('place', ['state_dict', 'meta', 'optimizer'])
def test_unpickling_runs_nothing(tmp_path, place, old_format):
    proof = tmp_path / 'proof'
    path = tmp_path / 'bad.pth'
    checkpoint = {'state_dict': dict(WEIGHTS), 'meta': {}, 'optimizer': {}}
    checkpoint[place]['x'] = Touch(proof)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(InputError, match=r'bad\.pth: refused, since loading it would use posix\.mknod') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert not proof.exists()
    pickle.loads(pickle.dumps(checkpoint[place]))  # what an unrestricted loader does
    assert proof.exists()


def test_getattr_reaches_nothing_but_statistics(tmp_path):
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': WEIGHTS, 'meta': {'x': Call(getattr, HistoryBuffer, '__init__')}}, path)
    with pytest.raises(InputError, match=r'would use builtins\.getattr'):
        read_checkpoint(path)


@pytest.fixture
def loader():
    """mmengine's loader, with a scheme that reads a file as mmengine's own schemes do."""
    schemes = CheckpointLoader._schemes
    CheckpointLoader._schemes = dict(schemes)
    # Upstream mmengine calls torch.load itself, the maintained one a function of its own that does.
    load = getattr(loading, '_safe_torch_load', lambda path: torch.load(path))
    CheckpointLoader.register_scheme('elsewhere://', lambda path, map_location: load(path.split('://')[1]))
    yield CheckpointLoader
    CheckpointLoader._schemes = schemes


@pytest.mark.parametrize('path', ['elsewhere://a.pth', 'a.pth'])
def test_mmengine_gets_no_code_to_execute_wherever_a_checkpoint_comes_from(tmp_path, monkeypatch, loader, path):
    monkeypatch.chdir(tmp_path)
    torch.save({'meta': {'epoch': 1, 'config': 'raise SystemExit'}, 'state_dict': WEIGHTS}, 'a.pth')
    assert 'config' in loader.load_checkpoint(path)['meta']
    with only_data():
        assert loader.load_checkpoint(path)['meta'] == {'epoch': 1}
    assert 'config' in loader.load_checkpoint(path)['meta']


@pytest.mark.parametrize('path', ['elsewhere://a.pth', 'a.pth'])
def test_mmengine_unpickles_nothing_wherever_a_checkpoint_comes_from(tmp_path, monkeypatch, loader, path):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'x': Touch(tmp_path / 'proof')}}, 'a.pth')
    with only_data(), pytest.raises((InputError, pickle.UnpicklingError), match=r'posix\.mknod'):
        loader.load_checkpoint(path)
    assert not (tmp_path / 'proof').exists()
    loader.load_checkpoint(path)
    assert (tmp_path / 'proof').exists()


def test_what_users_load_themselves_meanwhile_is_loaded(tmp_path):
    torch.save({'x': slice(3)}, tmp_path / 'features.pt')
    with only_data():
        assert torch.load(tmp_path / 'features.pt', weights_only=False) == {'x': slice(3)}


@pytest.mark.parametrize('name', ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'])
def test_what_users_set_for_torch_changes_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, '1')
    torch.save({'state_dict': {'x': Touch(tmp_path / 'proof')}}, tmp_path / 'bad.pth')
    torch.save({'state_dict': WEIGHTS}, tmp_path / 'good.pth')
    read_checkpoint(tmp_path / 'good.pth')
    with pytest.raises(InputError, match='refused'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'proof').exists()


@pytest.fixture
def targets(tmp_path):
    """Two files to write, of which the first one is there."""
    targets = tmp_path / 'a.pth', tmp_path / 'a.py'
    targets[0].write_text('before')
    return targets


def write(targets, error=None):
    with temporary_files(*targets) as files:
        for file in files:
            file.write_text('after')
        if error:
            raise error


def test_after_an_error_no_file_is_moved_into_place(targets, tmp_path):
    with pytest.raises(KeyError):
        write(targets, KeyError)
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']
    assert targets[0].read_text() == 'before'


def test_files_are_moved_into_place_together(targets, tmp_path):
    write(targets)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'a.py']
    assert targets[0].read_text() == 'after'


def save_zeros(target):
    with temporary_files(target) as (file,):
        write_checkpoint({'state_dict': {'x': torch.zeros(100_000)}}, file)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with full_disk(10_000), pytest.raises(InputError, match=r"can't write here: File too large; nothing was changed"):
        save_zeros(tmp_path / 'a.pth')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a folder that not even root can write to')
def test_a_read_only_folder_is_said():
    with pytest.raises(InputError, match=r"/sys: can't write here: (Permission denied|Operation not permitted)"):
        save_zeros(Path('/sys/a.pth'))
