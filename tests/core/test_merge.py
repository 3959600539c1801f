"""Tests of merging branches: in place, into a new layer, and modules without branches."""

import pytest
import torch
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.core.merge import (
    ADAPTERS,
    Adapter,
    branch_ends,
    can_merge,
    has_branches,
    merge,
    merge_method,
)


class Sum(nn.Module):
    """A block of another library that adds up two convolutions and merges them in place."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x):
        return sum(conv(x) for conv in self.convs)

    @torch.no_grad()
    def fuse(self):
        for name, parameter in self.convs[0].named_parameters():
            parameter += self.convs[1].get_parameter(name)
        del self.convs[1]


@pytest.fixture
def adapter(monkeypatch):
    adapter = Adapter(
        branch_ends=lambda module: ('convs.0', 'convs.1'),
        can_merge=lambda module: len(module.convs) == 2,
        method='fuse',
    )
    monkeypatch.setitem(ADAPTERS, f'{Sum.__module__}.Sum', adapter)


def test_an_adapter_says_how_a_block_merges(adapter):
    block = Sum()
    assert has_branches(block)
    assert can_merge(block)
    assert merge_method(block) == merge_method(Sum) == 'fuse'
    assert branch_ends(block) == {'convs.0': block.convs[0], 'convs.1': block.convs[1]}


def test_merging_calls_the_method_of_the_block(adapter):
    block, x = Sum(), torch.randn(2, 4, 3, 3)
    expected = block(x)
    assert merge(block) is block
    torch.testing.assert_close(block(x), expected)


def test_a_merged_block_still_counts_as_one_with_branches(adapter):
    block = merge(Sum())
    assert has_branches(block)
    assert not can_merge(block)
    assert branch_ends(block) == {'convs.0': block.convs[0]}


@pytest.mark.parametrize('attention', [False, True], ids=['branches', 'branches with an ASR'])
def test_fold_merges_a_block_that_has_an_adapter(adapter, attention):
    network, x = nn.Sequential(Sum()), torch.randn(2, 4, 3, 3)
    if attention:
        mmasr.attach(network, {'type': 'SE', 'ratio': 2}, sites=['0'])
    expected = network(x)
    torch.testing.assert_close(mmasr.fold(network)(x), expected)
    assert type(network[0]) is Sum
    assert len(network[0].convs) == 1


def test_a_branch_reparameterization_becomes_a_layer_in_the_same_mode():
    block = ACNet(4, 4)
    assert has_branches(block)
    assert can_merge(block)
    assert merge_method(block) is None
    assert list(branch_ends(block)) == list(ACNet.branch_ends)
    merged = merge(block.eval())
    assert type(merged) is nn.Conv2d
    assert not merged.training


def test_other_modules_have_no_branches():
    conv = nn.Conv2d(4, 4, 1)
    assert not has_branches(conv)
    assert not can_merge(conv)
    assert merge_method(conv) is None
    assert branch_ends(conv) == {}
