"""Joining the processes of torchrun; tests/tools/test_benchmark.py runs two real ones."""

import pytest
import torch

from mmasr.processes import join_processes


@pytest.fixture
def torchrun(monkeypatch):
    """Imitate the second process on a machine; return the list that records the calls of torch."""
    calls = []
    for key, value in {'RANK': 3, 'LOCAL_RANK': 1, 'WORLD_SIZE': 4}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr('torch.distributed.init_process_group', lambda backend: calls.append(backend))
    monkeypatch.setattr('torch.distributed.get_rank', lambda: 3)
    monkeypatch.setattr('torch.cuda.set_device', lambda device: calls.append(device))
    return calls


@pytest.mark.parametrize('device', ['cpu', 'cuda:1'])
def test_without_torchrun_no_group_is_joined(device, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    assert join_processes(device) == (0, torch.device(device))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize('device', ['cuda', 'cuda:0'])
def test_a_process_selects_its_own_gpu_before_it_joins(device, torchrun):
    own = torch.device('cuda:1')
    assert join_processes(device) == (3, own)
    assert torchrun == [own, 'nccl']


def test_a_process_on_the_cpu_selects_no_gpu(torchrun):
    assert join_processes('cpu') == (3, torch.device('cpu'))
    assert torchrun == ['gloo']
