"""A host that is taken out of its network without being folded is noticed."""

import copy
import pickle
import sys
import types

import pytest
import torch
import torchvision
from mmcv.cnn import fuse_conv_bn
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from versions import FULL_GRAPH

import mmasr
from mmasr.core.host import Host
from mmasr.core.watch import check_watched

X = torch.randn(2, 3, 16, 16)


def network() -> nn.Module:
    block = nn.Sequential()
    block.conv, block.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    model = mmasr.attach(nn.Sequential(block, nn.ReLU()), {'type': 'SE'}, sites=['0.bn']).eval()
    nn.init.normal_(model[0].bn.asr.psi)
    return model


def fuse(model):
    """As torch says to use its own function."""
    model[0].conv, model[0].bn = fuse_conv_bn_eval(model[0].conv, model[0].bn), nn.Identity()


def fuse_and_delete(model):
    """As ultralytics does."""
    model[0].conv = fuse_conv_bn_eval(model[0].conv, model[0].bn)
    del model[0].bn


TAKE_APART = {'mmcv': fuse_conv_bn, 'timm': freeze_batch_norm_2d, 'torch': fuse, 'as ultralytics': fuse_and_delete}
DUPLICATE = {
    'itself': lambda model: model,
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize('duplicate', DUPLICATE)
@pytest.mark.parametrize('how', TAKE_APART)
def test_what_takes_a_host_apart_is_noticed(how, duplicate):
    model = DUPLICATE[duplicate](network())
    TAKE_APART[how](model)
    for use in (lambda: model(X), lambda: mmasr.fold(model), lambda: mmasr.fold(nn.ModuleList([model]))):
        with pytest.raises(
            ValueError, match=r'^0\.bn was taken out of Sequential with its ASR, which is not folded.*mmasr\.fold'
        ):
            use()


@pytest.mark.parametrize('how', TAKE_APART)
def test_after_folding_it_works(how):
    model = network()
    with torch.no_grad():
        expected = model(X)
        mmasr.fold(model)
        TAKE_APART[how](model)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


class Fusing(nn.Sequential):
    def fuse(self, verbose=True):
        fuse_and_delete(self)
        return self, verbose


@pytest.mark.parametrize('duplicate', DUPLICATE)
@pytest.mark.parametrize('convolution', ['OREPA', 'DBB', None])
def test_a_network_of_ultralytics_folds_before_it_fuses(duplicate, convolution, monkeypatch):
    stock = type('BaseModel', (Fusing,), {'__module__': 'ultralytics'})
    monkeypatch.setitem(sys.modules, 'ultralytics', types.SimpleNamespace(BaseModel=stock))  # where pickle looks
    block = nn.Sequential()
    block.conv, block.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    model = stock(block)
    if convolution:
        mmasr.attach(model, {'type': convolution}, sites=['0.conv'])
    mmasr.attach(model, {'type': 'SE'}, sites=['0.bn']).eval()
    nn.init.normal_(model[0].bn.asr.psi)
    with torch.no_grad():
        expected = model(X)
        model = DUPLICATE[duplicate](model)
        assert isinstance(model, stock)
        assert model.fuse(verbose=False) == (model, False)
        assert type(model) is stock
        assert [type(module) for module in model.modules()] == [stock, nn.Sequential, nn.Conv2d]
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)  # as above


def test_the_copy_does_not_tell_of_the_original():
    model = network()
    copied = copy.deepcopy(model)
    fuse_conv_bn(model)
    copied(X)
    with pytest.raises(ValueError, match='taken out'):
        model(X)


def wrap(model):
    model[0].bn = nn.Sequential(model[0].bn)


def move(model):
    model.insert(0, nn.Identity())


def cut(model):
    del model[0]


def cut_to_none(model):
    model[0] = None


def fold_it_alone(model):
    mmasr.fold(model[0])
    model[0].bn = nn.Sequential(model[0].bn)


ALLOWED = [wrap, move, cut, cut_to_none, fold_it_alone, nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm]


@pytest.mark.parametrize('change', ALLOWED)
def test_what_loses_nothing_is_let_be(change):
    model = network()
    change(model)
    if change is not cut_to_none:
        model(X)
    mmasr.fold(model)
    assert not any(isinstance(module, Host) for module in model.modules())


def test_folding_leaves_nothing_behind():
    model = torchvision.models.resnet18()
    mmasr.fold(mmasr.attach(model, {'type': 'SE'}))
    assert vars(model).keys() == vars(torchvision.models.resnet18()).keys()
    assert not model._forward_pre_hooks


def test_a_second_attach_is_watched_by_the_same_hook():
    model = network()
    mmasr.attach(model, {'type': 'SE'}, sites=['0.conv'])
    assert list(model._forward_pre_hooks.values()).count(check_watched) == 1
    model[0].conv = nn.Conv2d(3, 8, 3)
    with pytest.raises(ValueError, match=r'^0\.conv was taken out'):
        model(X)


def test_the_watched_network_compiles_without_a_graph_break():
    model = network()
    compiled = torch.compile(model, fullgraph=FULL_GRAPH, backend='aot_eager')
    torch.testing.assert_close(compiled(X), model(X))


def test_torchs_fusing_for_quantization_refuses_a_host():
    with pytest.raises(AssertionError, match='did not find fuser method'):
        torch.ao.quantization.fuse_modules(network(), [['0.conv', '0.bn']])


def test_a_convolution_that_is_a_host_stays_one_when_it_is_fused():
    """Which docs/method.md says is wrong and goes unnoticed."""
    conv = mmasr.attach(nn.Conv2d(3, 8, 3), {'type': 'SE'}, sites='').eval()
    assert isinstance(fuse_conv_bn_eval(conv, nn.BatchNorm2d(8).eval()), Host)
