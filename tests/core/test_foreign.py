"""Tests of blocks and networks of other libraries that merge or fuse their own layers."""

import copy
import pickle
import sys
import types

import pytest
import timm
import torch
from helpers import randomize, randomize_norms
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from timm.models.byobnet import RepVggBlock
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mmasr
from mmasr.core.foreign import FoldBeforeMerge
from mmasr.core.host import Host
from mmasr.errors import InputError

DUPLICATE = {
    'itself': lambda model: model,
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
}
BLOCKS = pytest.mark.parametrize(
    ('block', 'method'),
    [(RepVGGBlock, 'switch_to_deploy'), (RepVggBlock, 'reparameterize')],
    ids=['mmpretrain', 'timm'],
)


@BLOCKS
def test_a_block_folds_its_asr_before_it_merges_its_branches(block, method):
    host = mmasr.attach(randomize(block(8, 8)).eval(), {'type': 'SE'}, sites='', psi={'std': 1.0})
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = host(x)
        getattr(host, method)()
        assert type(host) is block
        assert sum(isinstance(module, nn.BatchNorm2d) for module in host.modules()) == 0
        torch.testing.assert_close(host(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('asr', [False, True], ids=['OREPA', 'OREPA and ASR'])
@BLOCKS
def test_a_block_folds_orepa_before_it_merges_its_branches(block, method, asr):
    network = nn.Sequential(randomize(block(8, 8)).eval())
    mmasr.attach(network, {'type': 'OREPA'})
    if asr:
        mmasr.attach(network, {'type': 'SE'}, sites=['0'], psi={'std': 1.0})
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = network(x)
        getattr(network[0], method)()
        assert type(network[0]) is block
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('end', ['its own method', 'fold'])
@pytest.mark.parametrize('duplicate', DUPLICATE.values(), ids=DUPLICATE.keys())
@BLOCKS
def test_a_block_that_is_a_host_and_merges_itself_can_be_copied_and_pickled(block, method, duplicate, end):
    """Its class has two mixins, one inside the other."""
    network = nn.Sequential(randomize(block(8, 8)).eval())
    mmasr.attach(network, {'type': 'SE'}, sites=['0'], psi={'std': 1.0})
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = network(x)
        copied = duplicate(network)
        assert isinstance(copied[0], Host)
        assert isinstance(copied[0], FoldBeforeMerge)
        assert isinstance(copied[0], block)
        assert torch.equal(copied(x), expected)
        if end == 'fold':
            mmasr.fold(copied)
        else:
            getattr(copied[0], method)()
        assert type(copied[0]) is block
        assert not any(isinstance(module, nn.BatchNorm2d | mmasr.ASR) for module in copied.modules())
        torch.testing.assert_close(copied(x), expected, rtol=1e-5, atol=1e-5)
        if copied is not network:
            assert isinstance(network[0], Host)
            assert torch.equal(network(x), expected)


@BLOCKS
def test_a_second_attach_inside_a_block_does_not_wrap_its_method_twice(block, method):
    network = nn.Sequential(block(8, 8))
    mmasr.attach(network, {'type': 'OREPA'})
    before = type(network[0])
    mmasr.attach(network, {'type': 'SE'}, sites=['0'])
    mixins = [base for base in type(network[0]).__mro__ if base is FoldBeforeMerge]
    assert issubclass(before, FoldBeforeMerge)
    assert len(mixins) == 1


class Fusing(nn.Sequential):
    """Fuses as the networks of ultralytics do."""

    def fuse(self, verbose=True):
        self[0].conv = fuse_conv_bn_eval(self[0].conv, self[0].bn)
        del self[0].bn
        return self, verbose


@pytest.mark.parametrize('duplicate', DUPLICATE.values(), ids=DUPLICATE.keys())
@pytest.mark.parametrize('convolution', ['OREPA', 'DBB', None])
def test_a_network_of_ultralytics_folds_before_it_fuses(duplicate, convolution, monkeypatch):
    stock = type('BaseModel', (Fusing,), {'__module__': 'ultralytics'})
    module = types.SimpleNamespace(BaseModel=stock)
    monkeypatch.setitem(sys.modules, 'ultralytics', module)  # pickle looks the class up there
    block = nn.Sequential()
    block.conv, block.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    model = stock(block)
    if convolution:
        mmasr.attach(model, {'type': convolution}, sites=['0.conv'])
    mmasr.attach(model, {'type': 'SE'}, sites=['0.bn']).eval()
    nn.init.normal_(model[0].bn.asr.psi)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        model = duplicate(model)
        assert isinstance(model, stock)
        assert model.fuse(verbose=False) == (model, False)
        assert type(model) is stock
        assert [type(module) for module in model.modules()] == [stock, nn.Sequential, nn.Conv2d]
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['fastvit_t8', 'mobileone_s0', 'repvit_m1', 'levit_conv_128s'])
def test_blocks_of_timm_fold_before_they_merge(name):
    network = mmasr.attach(timm.create_model(name, num_classes=5), {'type': 'OREPA'})
    randomize_norms(network)
    size = 224 if 'levit' in name else 64
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = reparameterize_model(mmasr.fold(copy.deepcopy(network)))(x)
        merged = reparameterize_model(network)
        assert torch.equal(merged(x), expected)
        assert torch.equal(mmasr.fold(merged)(x), expected)


@pytest.mark.parametrize('kind', ['DBB', 'ACNet'])
def test_a_convolution_that_a_block_of_timm_merges_gets_no_branches(kind):
    """Merging them would give a bias, which the block ignores."""
    network = timm.create_model('repvit_m1', num_classes=5)
    sites = [name for name, m in network.named_modules() if type(m) is nn.Conv2d and m.kernel_size == (3, 3)]
    with pytest.raises(InputError, match=r'is in .* \(.*\), which merges its own layers'):
        mmasr.attach(network, {'type': kind}, sites=sites[:1])
    with pytest.raises(InputError, match='has no 3 x 3 convolution'):
        mmasr.attach(network, {'type': kind})
