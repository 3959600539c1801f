"""Tests of the guard: it detects hosts that were removed from their network without being folded."""

import copy
import pickle

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
from mmasr.core.removal_guard import check_hosts_present
from mmasr.errors import InputError

X = torch.randn(2, 3, 16, 16)


def network() -> nn.Module:
    block = nn.Sequential()
    block.conv, block.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    model = mmasr.attach(nn.Sequential(block, nn.ReLU()), {'type': 'SE'}, sites=['0.bn']).eval()
    nn.init.normal_(model[0].bn.asr.psi)
    return model


def fuse(model):
    """Fuse as the documentation of torch recommends."""
    model[0].conv, model[0].bn = fuse_conv_bn_eval(model[0].conv, model[0].bn), nn.Identity()


def fuse_and_delete(model):
    """Fuse as ultralytics does."""
    model[0].conv = fuse_conv_bn_eval(model[0].conv, model[0].bn)
    del model[0].bn


REMOVE = {
    'mmcv': fuse_conv_bn,
    'timm': freeze_batch_norm_2d,
    'torch': fuse,
    'as ultralytics': fuse_and_delete,
}
DUPLICATE = {
    'itself': lambda model: model,
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize('duplicate', DUPLICATE)
@pytest.mark.parametrize('how', REMOVE)
def test_removing_a_host_is_an_error_in_the_next_forward_pass_and_in_fold(how, duplicate):
    model = DUPLICATE[duplicate](network())
    REMOVE[how](model)
    for use in (lambda: model(X), lambda: mmasr.fold(model), lambda: mmasr.fold(nn.ModuleList([model]))):
        with pytest.raises(
            InputError,
            match=r'^0\.bn was removed from Sequential with its ASR, which is not folded.*mmasr\.fold',
        ):
            use()


@pytest.mark.parametrize('how', REMOVE)
def test_a_folded_network_can_be_fused(how):
    model = network()
    with torch.no_grad():
        expected = model(X)
        mmasr.fold(model)
        REMOVE[how](model)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


def test_a_copy_is_guarded_separately():
    model = network()
    copied = copy.deepcopy(model)
    fuse_conv_bn(model)
    copied(X)
    with pytest.raises(InputError, match='was removed'):
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


ALLOWED = [
    wrap,
    move,
    cut,
    cut_to_none,
    fold_it_alone,
    nn.SyncBatchNorm.convert_sync_batchnorm,
    convert_sync_batchnorm,
]


@pytest.mark.parametrize('change', ALLOWED)
def test_a_change_that_loses_no_host_is_allowed(change):
    model = network()
    change(model)
    if change is not cut_to_none:
        model(X)
    mmasr.fold(model)
    assert not any(isinstance(module, Host) for module in model.modules())


def test_folding_removes_the_guard():
    model = torchvision.models.resnet18()
    mmasr.fold(mmasr.attach(model, {'type': 'SE'}))
    assert vars(model).keys() == vars(torchvision.models.resnet18()).keys()
    assert not model._forward_pre_hooks


def test_a_second_attach_uses_the_same_hook():
    model = network()
    mmasr.attach(model, {'type': 'SE'}, sites=['0.conv'])
    assert list(model._forward_pre_hooks.values()).count(check_hosts_present) == 1
    model[0].conv = nn.Conv2d(3, 8, 3)
    with pytest.raises(InputError, match=r'^0\.conv was removed'):
        model(X)


def test_a_guarded_network_compiles_without_a_graph_break():
    model = network()
    compiled = torch.compile(model, fullgraph=FULL_GRAPH, backend='aot_eager')
    torch.testing.assert_close(compiled(X), model(X))


def test_torch_cannot_fuse_a_host_for_quantization():
    with pytest.raises(AssertionError, match='did not find fuser method'):
        torch.ao.quantization.fuse_modules(network(), [['0.conv', '0.bn']])


def test_a_convolution_that_is_a_host_is_still_one_after_fusing():
    """The result is wrong and not detected; docs/method.md says so."""
    conv = mmasr.attach(nn.Conv2d(3, 8, 3), {'type': 'SE'}, sites='').eval()
    assert isinstance(fuse_conv_bn_eval(conv, nn.BatchNorm2d(8).eval()), Host)


def test_a_host_that_is_replaced_in_one_of_several_places_is_an_error():
    norm = nn.BatchNorm2d(3)
    model = mmasr.attach(nn.Sequential(norm, nn.ReLU(), norm), {'type': 'SE'}, sites=['2']).eval()
    model(X)
    model[2] = nn.BatchNorm2d(3)
    with pytest.raises(InputError, match=r'^2 was removed from Sequential with its ASR'):
        model(X)


class Merging(nn.Module):
    """A block of an unknown library that merges its layers into a new one and deletes them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.merged = None

    def forward(self, x):
        return self.merged(x) if self.merged else self.inner(x)

    def merge(self):
        self.merged = fuse_conv_bn_eval(self.inner[0], self.inner[1])
        del self.inner


def test_a_host_that_its_block_merges_away_is_an_error():
    model = mmasr.attach(nn.Sequential(Merging()), {'type': 'SE'}, sites=['0.inner.1']).eval()
    model[0].merge()
    with pytest.raises(InputError, match=r'^0\.inner\.1 was removed from Sequential with its ASR'):
        model(X)


def test_a_host_whose_parent_is_replaced_is_an_error():
    model = mmasr.attach(nn.Sequential(Merging()), {'type': 'SE'}, sites=['0.inner.1']).eval()
    model[0].inner = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match=r'^0\.inner\.1 was removed from Sequential with its ASR'):
        model(X)


class MergingIntoASibling(nn.Module):
    """Merges a branch into its neighbor and deletes it, as RepGhost's blocks do, by an unknown method."""

    def __init__(self):
        super().__init__()
        self.operation = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.fusion = nn.Sequential(nn.BatchNorm2d(3))

    def forward(self, x):
        return self.operation(x) + (self.fusion(x) if hasattr(self, 'fusion') else 0)

    def squash(self):
        self.operation = nn.Conv2d(3, 3, 3, padding=1)
        del self.fusion


class MergingIntoAConvolution(MergingIntoASibling):
    """Adds the branch to a convolution that exists already."""

    def __init__(self):
        super().__init__()
        self.operation = nn.Conv2d(3, 3, 3, padding=1, bias=False)

    def squash(self):
        self.operation.bias = nn.Parameter(torch.zeros(3))
        del self.fusion


class MergingBySomeMethod(MergingIntoASibling):
    """Has a method that merges, but is merged by other code, which changes weights only."""

    def fuse(self):
        """Show that the block merges; a test that calls it is wrong."""
        raise AssertionError('it is merged by other code')

    def squash(self):
        self.operation[0].weight.data += 1
        del self.fusion


@pytest.mark.parametrize('block', [MergingIntoASibling, MergingIntoAConvolution, MergingBySomeMethod])
@pytest.mark.parametrize('spec', ['SE', 'OREPA'])
def test_a_host_that_vanishes_with_its_parent_is_an_error(block, spec):
    module = block()
    if spec == 'OREPA':
        module.fusion = nn.Sequential(nn.Conv2d(3, 3, 1))
    model = mmasr.attach(nn.Sequential(module), {'type': spec}, sites=['0.fusion.0']).eval()
    model[0].squash()
    for use in (lambda: model(X), lambda: mmasr.fold(model)):
        with pytest.raises(InputError, match=r'^0\.fusion\.0 was removed from Sequential with its'):
            use()


def test_a_stage_that_is_cut_off_is_no_error():
    model = torchvision.models.resnet18()
    mmasr.attach(model, {'type': 'SE'}).eval()
    del model.layer4
    model.layer3 = None
    mmasr.fold(model)
