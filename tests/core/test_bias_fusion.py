"""Tests of fusing the bias of a merged convolution into the BatchNorm after it."""

import copy

import pytest
import torch
from helpers import randomize
from mmcv.cnn import ConvModule
from torch import nn

import mmasr
from mmasr.core.bias_fusion import fuse_biases
from mmasr.errors import InputError


def test_the_bias_is_fused_into_the_batch_norm_that_follows():
    stock = ConvModule(4, 6, 3, padding=1, norm_cfg={'type': 'BN'})
    module = randomize(mmasr.attach(copy.deepcopy(stock), {'type': 'ACNet'})).eval()
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        expected = module(x)
        assert fuse_biases(mmasr.fold(module), ['conv'], lambda: module(x)) == {'conv': ['bn']}
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert module.state_dict().keys() == stock.state_dict().keys()


def test_a_convolution_without_a_batch_norm_after_it_is_rejected_and_nothing_changes():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)
    network = nn.Sequential(*layers).eval()
    with pytest.raises(
        InputError, match=r"^2 can't be merged into a convolution without bias: no BatchNorm of"
    ):
        fuse_biases(network, ['0', '2'], lambda: network(torch.randn(1, 3, 5, 5)))
    assert network[0].bias is not None
    assert network[1].running_mean.eq(0).all()
    assert network[2].bias is not None


def test_the_network_has_no_hooks_afterwards_even_if_the_run_fails():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

    def fail():
        raise RuntimeError('no memory')

    with pytest.raises(RuntimeError, match='no memory'):
        fuse_biases(network, ['0'], fail)
    fuse_biases(network, ['0'], lambda: network(torch.randn(1, 3, 5, 5)))
    assert not any(module._forward_hooks for module in network)


def test_without_names_the_network_does_not_run():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert fuse_biases(network, [], lambda: pytest.fail('it ran')) == {}


def test_every_batch_norm_after_a_shared_convolution_takes_its_bias():
    shared = nn.Conv2d(3, 4, 3)
    network = nn.ModuleList(nn.Sequential(shared, nn.BatchNorm2d(4)) for _ in range(3)).eval()
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = [level(x) for level in network]
        fused = fuse_biases(network, ['0.0'], lambda: [level(x) for level in network])
        assert fused == {f'{i}.0': ['0.1', '1.1', '2.1'] for i in range(3)}
        torch.testing.assert_close([level(x) for level in network], expected, rtol=1e-5, atol=1e-5)
    assert shared.bias is None


def test_a_convolution_is_rejected_if_another_layer_reads_it_too_or_its_batch_norm_reads_another():
    conv, other, norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    x = torch.randn(2, 3, 5, 5)
    network = nn.ModuleList([conv, other, norm])
    for run in (lambda: (norm(conv(x)), conv(x)), lambda: (norm(conv(x)), norm(other(x)))):
        with pytest.raises(InputError, match=r'^0 .*: no BatchNorm of its own follows it'):
            fuse_biases(network, ['0', '1'], run)
    assert conv.bias is not None


class Block(nn.Module):
    """A convolution, and a BatchNorm that is somewhere else."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU()])
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.layers[1](self.norm(self.layers[0](x)))


def folded(network, **options):
    """Attach DBB, fold a copy, and check that it computes the same."""
    network = randomize(mmasr.attach(network, {'type': 'DBB'})).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = network(x)
        mmasr.fold(network, **options)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    return network


@pytest.mark.parametrize('verify', [None, torch.randn(2, 3, 9, 9)], ids=['fold', 'verified'])
def test_folding_moves_a_bias_into_the_batch_norm_that_it_sees(verify):
    stock = nn.Sequential(nn.Conv2d(3, 3, 1), ConvModule(3, 6, 3, padding=1, norm_cfg={'type': 'BN'}))
    network = folded(copy.deepcopy(stock), verify=verify)
    assert network.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize('verify', [None, torch.randn(2, 3, 9, 9)], ids=['fold', 'verified'])
def test_it_sees_a_batch_norm_outside_the_module_around_the_convolution(verify):
    assert folded(Block(), verify=verify).layers[0].bias is None


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


@pytest.mark.parametrize('verify', [None, torch.randn(2, 3, 9, 9)], ids=['fold', 'verified'])
def test_a_bias_stays_where_something_else_reads_the_convolution_too(verify):
    assert folded(ReadTwice(), verify=verify).conv.bias is not None


def test_a_bias_of_the_stock_layer_stays():
    network = folded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)))
    assert network[0].bias is not None


def test_a_network_in_training_mode_stays_in_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    mmasr.fold(mmasr.attach(network, {'type': 'DBB'}).train())
    assert network[0].bias is None
    assert all(module.training for module in network.modules())


class Outside(nn.Module):
    """Uses the BatchNorm of a block for something else, too."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential()
        self.block.conv, self.block.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.block(x) + self.block.bn(x)


@pytest.mark.parametrize('verify', [None, torch.randn(2, 3, 9, 9)], ids=['fold', 'verified'])
def test_a_bias_stays_where_the_batch_norm_is_used_elsewhere_too(verify):
    assert folded(Outside(), verify=verify).block.conv.bias is not None


@pytest.mark.parametrize('verify', [None, torch.randn(2, 3, 9, 9)], ids=['fold', 'verified'])
def test_a_block_in_two_places_keeps_computing_the_same(verify):
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
    assert folded(nn.Sequential(block, block), verify=verify)[0][0].bias is None


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(input=self.conv(x))


def test_a_batch_norm_that_is_called_by_keyword_is_seen():
    assert folded(Keyword()).conv.bias is None
