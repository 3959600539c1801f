"""Checkpoints are read as data: only weights, numbers and text are accepted, and nothing runs."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from helpers import Call, Touch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading
from safetensors.torch import save_file

from mmasr.errors import InputError
from mmasr.untrusted.checkpoint import data_only, read_checkpoint

WEIGHTS = {'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)}


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize('weights_only', [False, True], ids=['all', 'weights'])
def test_a_checkpoint_of_a_runner_is_read(tmp_path, weights_only):
    path = tmp_path / 'epoch_1.pth'
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.mean()
    history._statistics_methods = dict(history._statistics_methods)  # like mmengine's message hub
    checkpoint = {
        'meta': {
            'cfg': 'a = 1',
            'seed': np.int64(3),
            'dataset_meta': {'classes': ('a', 'b'), 'palette': np.ones((2, 3))},
        },
        'state_dict': WEIGHTS,
        'message_hub': {'log_scalars': {'loss': history}},
        'optimizer': {
            'state': {0: {'momentum_buffer': torch.ones(2, 3)}},
            'param_groups': [{'lr': 0.1, 'params': [0]}],
        },
    }
    torch.save(checkpoint, path)
    read = read_checkpoint(path, weights_only=weights_only)
    assert read['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert np.array_equal(read['meta']['dataset_meta']['palette'], np.ones((2, 3)))
    assert read['meta']['seed'] == 3
    assert torch.equal(read['state_dict']['conv.weight'], WEIGHTS['conv.weight'])
    assert read['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert read['optimizer']['param_groups'][0]['lr'] == 0.1


@pytest.mark.parametrize('old_format', [False, True], ids=['zip', 'old format'])
def test_bare_weights_are_read_without_the_prefix_of_a_wrapper(tmp_path, old_format):
    path = tmp_path / 'weights.pth'
    torch.save(
        {f'module.{name}': t for name, t in WEIGHTS.items()},
        path,
        _use_new_zipfile_serialization=not old_format,
    )
    read = read_checkpoint(path, weights_only=True)
    assert read['meta'] == {}
    assert list(read['state_dict']) == list(WEIGHTS)


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_all_pickle_protocols_are_read(tmp_path, protocol):
    torch.save({'state_dict': WEIGHTS, 'meta': {'epoch': 3}}, tmp_path / 'a.pth', pickle_protocol=protocol)
    read = read_checkpoint(tmp_path / 'a.pth', weights_only=True)
    assert torch.equal(read['state_dict']['conv.weight'], WEIGHTS['conv.weight'])
    assert read['meta'] == {'epoch': 3}


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / 'a.safetensors')
    with data_only():
        for read in (
            read_checkpoint(tmp_path / 'a.safetensors', weights_only=True),
            CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors')),
        ):
            assert read['meta'] == {}
            assert {name: t.tolist() for name, t in read['state_dict'].items()} == {
                name: t.tolist() for name, t in WEIGHTS.items()
            }


@pytest.mark.parametrize('weights_only', [False, True], ids=['all', 'weights'])
@pytest.mark.parametrize(
    'content',
    [
        {'model': WEIGHTS, 'optimizer': {'state': {0: torch.ones(3)}}, 'args': argparse.Namespace(lr=0.1)},
        {'ema': {'module': WEIGHTS, 'updates': 3}},
        {'model': None, 'model_ema': {'n_averaged': torch.tensor(3), **prefixed('module.')}},
        {'net': WEIGHTS, 'acc': 95.1},
        {'params': WEIGHTS, 'epoch': 3},
        {'model': WEIGHTS, 'ema': {name: 2 * tensor for name, tensor in WEIGHTS.items()}},
        {'pytorch-lightning_version': '2.4.0', 'state_dict': prefixed('model.')},
        {'pytorch-lightning_version': '2.4.0', 'state_dict': prefixed('model._orig_mod.')},
        {'state_dict': prefixed('module._orig_mod.')},
        prefixed('_orig_mod.module.'),
    ],
    ids=lambda content: ' '.join(content)[:40],
)
def test_weights_of_other_code_are_found(tmp_path, content, weights_only):
    torch.save(content, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth', weights_only)
    assert read['state_dict'].keys() == WEIGHTS.keys()
    assert all(torch.equal(read['state_dict'][name], tensor) for name, tensor in WEIGHTS.items())


def test_a_pickled_network_is_refused_with_the_way_to_save_its_weights(tmp_path):
    torch.save({'epoch': 3, 'model': torch.nn.Linear(2, 2)}, tmp_path / 'a.pt')
    message = r"use torch\.nn\.modules\.linear\.Linear;.*save \{'state_dict': model\.state_dict\(\)\}"
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / 'a.pt')


def test_a_whole_file_that_is_not_read_is_not_called_damaged(tmp_path):
    torch.save({'model': WEIGHTS}, tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / 'b.pth', 'w', zipfile.ZIP_DEFLATED) as file:
        for name, data in records.items():
            file.writestr(name, data)
    with pytest.raises(InputError, match=r'b\.pth: its archive was compressed, .* save it again') as caught:
        read_checkpoint(tmp_path / 'b.pth')
    assert 'damaged' not in str(caught.value)


# Files that replace a good checkpoint.
BROKEN = {
    'empty': lambda good: b'',
    'text': lambda good: b'hello, world',
    'truncated': lambda good: good[: len(good) // 2],
    'short': lambda good: good[:10],
    'image': lambda good: b'\x89PNG\r\n\x1a\n' + bytes(100),
    'photo': lambda good: b'P6 2 2 255\n' + bytes(12),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, name):
    path = tmp_path / f'{name}.pth'
    torch.save({'state_dict': {'weight': torch.randn(1000)}}, path)
    path.write_bytes(BROKEN[name](path.read_bytes()))
    with pytest.raises(InputError, match=rf'{name}\.pth: not a PyTorch checkpoint') as caught:
        read_checkpoint(path, weights_only=True)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'a list'),
        ({'state_dict': {}}, 'no dict of weights'),
        ({'epoch': 3}, 'no dict of weights'),
        ({'state_dict': {3: torch.zeros(1)}}, 'no dict of weights'),
    ],
    ids=['a list', 'an empty state_dict', 'not a tensor', 'a number as a name'],
)
def test_content_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(InputError, match=f'not a checkpoint.*{message}'):
        read_checkpoint(tmp_path / 'other.pth')


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r'none\.pth: No such file or directory'):
        read_checkpoint(tmp_path / 'none.pth')


def test_a_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match='Is a directory'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('old_format', [False, True], ids=['zip', 'old format'])
@pytest.mark.parametrize('place', ['state_dict', 'meta', 'optimizer'])
def test_nothing_runs_while_a_checkpoint_is_read(tmp_path, place, old_format):
    proof = tmp_path / 'proof'
    path = tmp_path / 'bad.pth'
    checkpoint = {'state_dict': dict(WEIGHTS), 'meta': {}, 'optimizer': {}}
    checkpoint[place]['x'] = Touch(proof)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(
        InputError, match=r'bad\.pth: refused, since loading it would use posix\.mknod'
    ) as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert not proof.exists()
    pickle.loads(pickle.dumps(checkpoint[place]))  # an unrestricted loader runs it
    assert proof.exists()


def test_getattr_returns_only_statistics(tmp_path):
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': WEIGHTS, 'meta': {'x': Call(getattr, HistoryBuffer, '__init__')}}, path)
    with pytest.raises(InputError, match=r'would use builtins\.getattr'):
        read_checkpoint(path)


@pytest.fixture
def loader():
    """Return mmengine's loader, with another scheme that reads files like mmengine's own schemes."""
    schemes = CheckpointLoader._schemes
    CheckpointLoader._schemes = dict(schemes)
    # Upstream mmengine calls torch.load directly, the maintained version through this function.
    load = getattr(loading, '_safe_torch_load', lambda path: torch.load(path))
    CheckpointLoader.register_scheme('elsewhere://', lambda path, map_location: load(path.split('://')[1]))
    yield CheckpointLoader
    CheckpointLoader._schemes = schemes


@pytest.mark.parametrize('path', ['elsewhere://a.pth', 'a.pth'])
def test_mmengine_gets_no_config_to_execute(tmp_path, monkeypatch, loader, path):
    monkeypatch.chdir(tmp_path)
    torch.save({'meta': {'epoch': 1, 'config': 'raise SystemExit'}, 'state_dict': WEIGHTS}, 'a.pth')
    assert 'config' in loader.load_checkpoint(path)['meta']
    with data_only():
        assert loader.load_checkpoint(path)['meta'] == {'epoch': 1}
    assert 'config' in loader.load_checkpoint(path)['meta']


@pytest.mark.parametrize('path', ['elsewhere://a.pth', 'a.pth'])
def test_mmengine_unpickles_nothing(tmp_path, monkeypatch, loader, path):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'x': Touch(tmp_path / 'proof')}}, 'a.pth')
    with data_only(), pytest.raises((InputError, pickle.UnpicklingError), match=r'posix\.mknod'):
        loader.load_checkpoint(path)
    assert not (tmp_path / 'proof').exists()
    loader.load_checkpoint(path)
    assert (tmp_path / 'proof').exists()


def test_torch_load_itself_still_loads_everything(tmp_path):
    torch.save({'x': slice(3)}, tmp_path / 'features.pt')
    with data_only():
        assert torch.load(tmp_path / 'features.pt', weights_only=False) == {'x': slice(3)}


@pytest.mark.parametrize('name', ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'])
def test_environment_variables_of_torch_change_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, '1')
    torch.save({'state_dict': {'x': Touch(tmp_path / 'proof')}}, tmp_path / 'bad.pth')
    torch.save({'state_dict': WEIGHTS}, tmp_path / 'good.pth')
    read_checkpoint(tmp_path / 'good.pth')
    with pytest.raises(InputError, match='refused'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'proof').exists()


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.pth')
    with pytest.raises(InputError, match='not a regular file'):
        read_checkpoint(tmp_path / 'a.pth')
