"""The limit on the memory of this process."""

import resource
import sys

import pytest
import torch

from mmasr.untrusted.memory import limited_memory

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has /proc/self/statm')


@pytest.mark.parametrize(
    ('allocate', 'error'),
    [(lambda size: bytearray(size), MemoryError), (lambda size: torch.zeros(size // 4), RuntimeError)],
    ids=['Python', 'torch'],
)
def test_more_memory_is_refused(allocate, error):
    with pytest.raises(error), limited_memory(2**28):
        allocate(2**36)  # more than the heap of a long run can hold free
    assert len(allocate(2**20)) > 0


def test_memory_below_the_limit_is_available():
    with limited_memory(2**28):
        assert len(bytearray(2**26)) == 2**26


def test_the_previous_limit_is_restored_after_an_error():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(2**30):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    with pytest.raises(KeyError), limited_memory(2**30):
        raise KeyError
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_an_inner_limit_does_not_raise_an_outer_one():
    with limited_memory(2**28):
        outer = resource.getrlimit(resource.RLIMIT_AS)
        with limited_memory(2**40):
            assert resource.getrlimit(resource.RLIMIT_AS) == outer
