"""Tests of fold: the stock network that is left, what cannot be folded, and the list of what is foldable."""

import copy

import pytest
import timm
import torch
import torchvision
from helpers import plugin, randomize, randomize_norms, randomize_scales
from mmengine.registry import MODELS
from torch import nn
from versions import need_on_a_cpu

import mmasr
from mmasr.core.foldable import Foldable, find_foldable, fold_all
from mmasr.core.host import Host
from mmasr.core.scaling import scaled
from mmasr.errors import InputError

C = 8


@pytest.mark.parametrize(
    'make',
    [
        torchvision.models.resnet18,
        torchvision.models.resnext50_32x4d,
        lambda: timm.create_model('resnet26'),
        lambda: timm.create_model('seresnet50'),
        lambda: timm.create_model('resnet18d', norm_layer=lambda c, **kw: nn.GroupNorm(4, c, **kw)),
    ],
)
def test_a_network_folds_to_its_stock_form(make):
    stock = make()
    types = [type(m) for m in stock.modules()]
    model = randomize_scales(mmasr.attach(copy.deepcopy(stock), {'type': 'SE'})).eval()
    assert sum(isinstance(m, Host) for m in model.modules()) == sum(
        type(m).__name__ in ('BasicBlock', 'Bottleneck') for m in model.modules()
    )
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    assert mmasr.fold(model) is model
    # Float32, one more rounding per layer: 1e-5 of the largest value. A missing fold would be off by half.
    assert (model(x) - before).abs().max() < 1e-5 * before.abs().max()
    assert [type(m) for m in model.modules()] == types
    assert model.state_dict().keys() == stock.state_dict().keys()


def test_a_network_with_nothing_to_fold_stays_as_it_is():
    model = torchvision.models.resnet18()
    before = copy.deepcopy(model.state_dict())
    assert mmasr.fold(model) is model
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_an_asr_without_a_host_is_rejected_and_nothing_is_folded():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = mmasr.attach(nn.BatchNorm2d(C), {'type': 'SE'}, sites='')
            self.scale = mmasr.ASR({'type': 'SE'}, C)

    block = Block()
    with pytest.raises(InputError, match=r"^scale can't be folded: no layer has it as its ASR"):
        mmasr.fold(block)
    assert isinstance(block.bn, Host)


def test_another_layer_that_shares_the_weight_keeps_it():
    first, second = nn.Linear(C, C), nn.Linear(C, C)
    second.weight = first.weight
    model = mmasr.attach(nn.Sequential(first, second), {'type': 'SE'}, sites=['1'])
    before = first.weight.clone()
    x = torch.randn(3, C)
    expected = model(x)
    torch.testing.assert_close(mmasr.fold(model)(x), expected)
    assert torch.equal(first.weight, before)


def test_a_module_in_several_places_is_merged_once():
    shared = mmasr.attach(nn.Conv2d(4, 4, 3, padding=1), {'type': 'ACNet'}, sites='')
    network = mmasr.fold(nn.Sequential(shared, nn.ReLU(), shared))
    assert type(network[0]) is nn.Conv2d
    assert network[0] is network[2]


def test_branches_that_stay_are_not_merged_but_their_asr_is_folded():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    mmasr.attach(model, {'type': 'ACNet'})
    kind = type(model[0])
    mmasr.attach(model, {'type': 'SE'}, sites=['0'])
    mmasr.fold(model, stay=['0'])
    assert [type(module) for module in model] == [kind, nn.Conv2d]
    assert not any(isinstance(module, mmasr.ASR) for module in model.modules())


@pytest.fixture
def model():
    """Return a block of mmdet with a host and an ASR plugin, and branches without and with an ASR."""
    plugins = [plugin('ASR', 'after_conv2', attention={'type': 'SE'})]
    backbone = {'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 8, 'plugins': plugins}
    block = MODELS.build(backbone).layer1[0]
    branches = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
    model = nn.ModuleDict({'block': block, 'branches': mmasr.attach(branches, {'type': 'ACNet'})})
    return mmasr.attach(model, {'type': 'SE'}, sites=['block.bn3', 'branches.1'])


def test_find_foldable_lists_hosts_plugins_and_branches_by_name(model):
    found = find_foldable(model)
    assert found.hosts == {'block.bn3': model['block'].bn3, 'branches.1': model['branches'][1]}
    assert {name: plugin.asr for name, plugin in found.plugins.items()} == {'block.asr': model['block'].asr}
    assert found.branches == {'branches.0': model['branches'][0], 'branches.1': model['branches'][1]}


def test_the_names_of_a_foldable_are_listed_once(model):
    assert find_foldable(model).names() == ['branches.0', 'branches.1', 'block.asr', 'block.bn3']


def test_the_reparameterizations_of_a_foldable_are_those_of_hosts_and_plugins(model):
    assert find_foldable(model).reparameterizations() == {
        'block.asr': model['block'].asr,
        'block.bn3': model['block'].bn3.asr,
        'branches.1': model['branches'][1].asr,
    }


def test_a_foldable_is_false_once_everything_is_folded(model):
    assert find_foldable(model)
    assert not find_foldable(mmasr.fold(model))
    assert not Foldable(hosts={}, plugins={}, branches={})


@pytest.mark.parametrize('name', ['hosts', 'plugins', 'branches'])
def test_a_foldable_with_any_entry_is_true(name):
    assert Foldable(**{'hosts': {}, 'plugins': {}, 'branches': {}, name: {'a': nn.Identity()}})


class TwoInputs(nn.Module):
    """Takes two inputs, changes one of them in place, and returns a dict."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3, padding=1)
        self.bn = nn.BatchNorm2d(C)
        self.unused = nn.BatchNorm2d(C)

    def forward(self, x, offset):
        features = self.bn(self.conv(x.relu_()))
        return {'features': [features], 'sum': features.sum() + offset, 'count': x.numel()}


def two_inputs(kind, sites=('bn',)):
    model = mmasr.attach(TwoInputs(), {'type': kind}, sites=list(sites))
    return randomize(model)


@pytest.mark.parametrize(('kind', 'site'), [('SE', 'bn'), ('OREPA', 'conv'), ('DBB', 'conv')])
@pytest.mark.parametrize('as_dict', [False, True], ids=['tuple', 'dict'])
def test_a_verified_fold_compares_layers_and_outputs_and_folds(kind, site, as_dict):
    model = two_inputs(kind, [site])
    x, offset = torch.randn(2, 3, 9, 9), torch.ones(1)
    before = x.clone()
    expected = copy.deepcopy(model).eval()(x.clone(), offset)['sum']
    model.train()
    mmasr.fold(model, verify={'x': x, 'offset': offset} if as_dict else (x, offset))
    assert model.training
    assert torch.equal(x, before)
    assert isinstance(model.get_submodule(site), nn.BatchNorm2d if kind == 'SE' else nn.Conv2d)
    torch.testing.assert_close(model.eval()(x, offset)['sum'], expected, rtol=1e-4, atol=1e-4)


def wrong_scale(self, layer):
    return {name: 1.01 * tensor for name, tensor in scaled(layer, self.scale()).items()}


def changed_tensor(model, stay=()):
    fold_all(model, stay)
    if isinstance(model, TwoInputs):
        model.conv.weight.data[0, 0, 0, 0] += 1e-5
    return model


@pytest.mark.parametrize(
    ('target', 'wrong', 'message'),
    [
        ('mmasr.core.asr.ASR.effective_parameters', wrong_scale, r'layer bn differs from the trained one'),
        (
            'mmasr.core.verification.fold_all',
            changed_tensor,
            r'conv\.weight of the folded network is not the',
        ),
    ],
    ids=['layer', 'tensor'],
)
def test_a_fold_that_is_wrong_raises_and_leaves_the_network_unchanged(monkeypatch, target, wrong, message):
    model = two_inputs('SE')
    before = copy.deepcopy(model.state_dict())
    types = [type(m) for m in model.modules()]
    monkeypatch.setattr(target, wrong)
    with pytest.raises(InputError, match=message):
        mmasr.fold(model, verify=(torch.randn(2, 3, 9, 9), 0))
    assert [type(m) for m in model.modules()] == types
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_verified_fold_needs_inputs_that_reach_every_folded_layer():
    model = two_inputs('SE', ['bn', 'unused'])
    with pytest.raises(InputError, match='the inputs do not reach unused, so folding it is not verified'):
        mmasr.fold(model, verify=(torch.randn(2, 3, 9, 9), 0))
    assert isinstance(model.bn, Host)


def test_a_verified_fold_refuses_outputs_that_are_not_finite():
    model = two_inputs('SE')
    with pytest.raises(
        InputError, match=r'the output output\.sum of the trained network contains NaN or Inf'
    ):
        mmasr.fold(model, verify=(torch.randn(2, 3, 9, 9), torch.tensor(torch.nan)))
    assert isinstance(model.bn, Host)


def test_a_verified_fold_needs_outputs_that_are_tensors():
    model = mmasr.attach(nn.Sequential(nn.BatchNorm2d(3)), {'type': 'SE'}, sites=['0'])
    model.register_forward_hook(lambda module, args, output: 'text')
    with pytest.raises(InputError, match='the network returned no tensors to compare, but a str'):
        mmasr.fold(model, verify=torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('spec', [{'type': 'ASR', 'attention': {'type': 'SE'}, 'delta': 3}, {'type': 'DBB'}])
def test_networks_in_other_types_are_verified(dtype, spec):
    need_on_a_cpu(dtype)
    stock = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, C, 3, padding=1))
    model = randomize(mmasr.attach(stock, spec, sites=['3'])).to(dtype)
    mmasr.fold(model, verify=torch.randn(2, 3, 9, 9, dtype=dtype))
    assert type(model[3]) is nn.Conv2d


def test_stock_networks_are_verified_with_what_stays():
    model = torchvision.models.resnet18()
    mmasr.attach(model, {'type': 'ACNet'}, sites=['layer1.0.conv1', 'layer1.1.conv1'])
    mmasr.attach(model, {'type': 'SE'})
    randomize_norms(randomize_scales(model))
    mmasr.fold(model, stay=['layer1.0.conv1'], verify=torch.randn(2, 3, 64, 64))
    assert find_foldable(model).branches.keys() == {'layer1.0.conv1'}


@pytest.mark.parametrize('spec', [{'type': 'SE'}, {'type': 'OREPA'}, {'type': 'DBB'}])
def test_an_optimizer_keeps_training_the_parameters_that_remain(spec):
    stock = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
    model = mmasr.attach(stock, spec, sites=['1'] if spec['type'] == 'SE' else ['0'])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mmasr.fold(model)
    known = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert {id(model[0].weight), id(model[1].weight), id(model[1].bias)} <= known
    before = model[0].weight.clone()
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_a_state_dict_from_before_keeps_its_values():
    model = mmasr.attach(nn.Sequential(nn.BatchNorm2d(C)), {'type': 'SE'}, sites=['0'])
    before = model.state_dict()
    copied = copy.deepcopy(before)
    mmasr.fold(model)
    torch.testing.assert_close(before, copied, rtol=0, atol=0)
