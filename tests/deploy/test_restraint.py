"""What a stranger's network is built and run within."""

import resource
import sys

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmasr.deploy.restraint import restrained

SMALL = {'weight': 8}


@pytest.mark.parametrize(
    'build',
    [
        lambda: nn.Linear(10**4, 10**4),
        lambda: nn.Module().register_buffer('a', torch.zeros(1).expand(10**9)),
        lambda: nn.Sequential(*(nn.Identity() for _ in range(10**5))),
    ],
    ids=['parameters', 'a buffer', 'modules'],
)
def test_a_network_out_of_proportion_is_not_built(build):
    with pytest.raises(RuntimeError, match='many times larger'), restrained(SMALL):
        build()


def test_a_network_of_its_weights_size_is_built():
    with restrained({'weight': 10**8}), torch.device('meta'):
        nn.Linear(10**4, 10**4)


@pytest.mark.skipif(sys.platform != 'linux', reason='no other system says how much memory is taken')
def test_memory_is_bounded():
    with pytest.raises(RuntimeError), restrained(SMALL):
        torch.zeros(2**34)


def test_a_word_that_no_registry_has_is_not_imported(tmp_path, monkeypatch):
    proof = tmp_path / 'proof'
    (tmp_path / 'a_stranger.py').write_text(f'open({str(proof)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyError), restrained(SMALL):
        MODELS.build({'type': 'a_stranger'})
    assert not proof.exists()
    with pytest.raises(TypeError):  # as it is otherwise
        MODELS.build({'type': 'a_stranger'})
    assert proof.exists()


def test_a_type_that_is_not_allowed_is_not_built_under_any_key():
    with pytest.raises(RuntimeError, match=r'StochasticWeightAverage.*is not allowed'), restrained(SMALL):
        MODELS.get('StochasticWeightAverage')


def test_everything_is_as_it_was_afterwards():
    limits, get = resource.getrlimit(resource.RLIMIT_AS), type(MODELS).get
    with restrained(SMALL):
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert type(MODELS).get is get
    nn.Linear(4000, 4000)
