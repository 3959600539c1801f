import pytest
import torch

from mmasr.stripes import ChannelStatistics, Stripes
from mmasr.stripes.observer import ROWS


@pytest.fixture(scope='session')
def make_stripes():
    """Return a function that makes the stripes of a module from its values, and its pooled input if given."""

    def make(name, v, pooled=None):
        v = torch.as_tensor(v, dtype=torch.float64)
        pooled = v if pooled is None else pooled
        rows = torch.stack([pooled, v])[:, :ROWS]
        return Stripes(name, 'SE', ChannelStatistics.of(v), ChannelStatistics.of(pooled), rows, False)

    return make
