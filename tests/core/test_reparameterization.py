"""Tests of the protocol: the registry of names, and what all replacements of convolutions have in common."""

import copy

import pytest
import torch
from torch import nn

import mmasr
from mmasr.attention import ATTENTIONS
from mmasr.convolutions.acnet import ACNet
from mmasr.convolutions.orepa import OREPA
from mmasr.core.reparameterization import (
    REPARAMETERIZATIONS,
    BranchReparameterization,
    ParameterReparameterization,
    Reparameterization,
    resolve,
)
from mmasr.errors import InputError


def test_every_registered_class_is_a_reparameterization():
    known = {'ASR', 'OREPA', 'OfflineOREPA', 'DBB', 'ACNet', 'XVolution'}
    newer = {'RepVGG', 'QARepVGG', 'MobileOne', 'DilatedReparam'}
    assert known | newer <= set(REPARAMETERIZATIONS)
    for name, kind in REPARAMETERIZATIONS.items():
        assert issubclass(kind, Reparameterization)
        assert kind.__name__ == name


@pytest.mark.parametrize('scope', ['', 'mmasr.'])
@pytest.mark.parametrize(('name', 'kind'), [('OREPA', OREPA), ('ACNet', ACNet), ('ASR', mmasr.ASR)])
def test_a_registered_name_gives_its_class_and_the_other_options(name, kind, scope):
    spec = {'type': f'{scope}{name}', 'init_identity': True}
    assert resolve(spec) == (kind, {'init_identity': True})
    assert spec == {'type': f'{scope}{name}', 'init_identity': True}


@pytest.mark.parametrize('scope', ['', 'mmasr.'])
def test_the_name_of_an_attention_is_short_for_an_asr(scope):
    spec = {'type': f'{scope}SE', 'ratio': 4}
    assert resolve(spec) == (mmasr.ASR, {'attention': spec})


def test_a_callable_is_short_for_an_asr():
    assert resolve(mmasr.ECA) == (mmasr.ASR, {'attention': mmasr.ECA})


def test_custom_classes_and_attentions_are_found(monkeypatch):
    monkeypatch.setitem(REPARAMETERIZATIONS, 'Mine', ACNet)
    monkeypatch.setitem(ATTENTIONS, 'MyAttention', mmasr.SE)
    assert resolve({'type': 'Mine'}) == (ACNet, {})
    assert resolve({'type': 'MyAttention'}) == (mmasr.ASR, {'attention': {'type': 'MyAttention'}})


@pytest.mark.parametrize(
    ('spec', 'name'),
    [({'type': 'Se'}, 'Se'), ({'type': 'mmdet.ACNet'}, 'mmdet.ACNet'), ({'ratio': 4}, ''), ({'type': 3}, '')],
    ids=['wrong case', 'another scope', 'no type', 'not a name'],
)
def test_an_unknown_type_is_rejected_with_the_known_names(spec, name):
    known = ', '.join(sorted({*REPARAMETERIZATIONS, *ATTENTIONS}))
    with pytest.raises(InputError, match=rf"^unknown type '{name}'; known are {known}$"):
        resolve(spec)
    with pytest.raises(InputError, match=rf"^unknown type '{name}'; known are {known}$"):
        mmasr.attach(nn.Sequential(nn.BatchNorm2d(4)), spec, sites=['0'])


def test_the_two_kinds_differ_in_whether_they_are_a_child_of_the_layer():
    for kind in REPARAMETERIZATIONS.values():
        assert issubclass(kind, ParameterReparameterization) != issubclass(kind, BranchReparameterization)
        assert (kind.attribute is not None) == issubclass(kind, ParameterReparameterization)


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv2d(3, 4, 3, padding='same'),
        nn.Conv1d(3, 4, 3),
        type('Custom', (nn.Conv2d,), {})(3, 4, 3, padding=1),
    ],
    ids=['reflection', 'padding by name', 'Conv1d', 'subclass'],
)
def test_branches_replace_only_plain_convolutions_with_zero_padding(conv):
    message = r"can't become DBB, which replaces an nn\.Conv2d with zero padding that is given in numbers$"
    with pytest.raises(InputError, match=rf'^0 \({type(conv).__name__}\) {message}'):
        mmasr.attach(nn.Sequential(conv), {'type': 'DBB'}, sites=['0'])


def test_default_sites_of_branches_are_all_3x3_convolutions_outside_blocks_with_branches():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), ACNet(4, 4), nn.Conv2d(4, 4, 3, padding=1)
    )
    assert ACNet.default_sites(model) == ['0', '3']


def test_a_network_without_3x3_convolutions_is_rejected():
    with pytest.raises(InputError, match=r'Sequential has no 3 x 3 convolution; pass sites='):
        mmasr.attach(nn.Sequential(nn.Conv2d(3, 4, 1)), {'type': 'ACNet'})


@pytest.mark.parametrize(
    ('kind', 'main'),
    [
        *((kind, 'origin.conv') for kind in ('DBB', 'OfflineOREPA', 'RepVGG', 'QARepVGG', 'MobileOne')),
        ('ACNet', 'square.0'),
    ],
)
def test_the_weight_of_a_plain_convolution_goes_to_the_main_branch(kind, main):
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    network = mmasr.attach(nn.Sequential(copy.deepcopy(conv)), {'type': kind})
    assert torch.equal(network[0].get_submodule(main).weight, conv.weight)
    other = {'0.weight': torch.randn(8, 4, 3, 3)}
    assert network.load_state_dict(dict(other), strict=False).unexpected_keys == []
    assert torch.equal(network[0].get_submodule(main).weight, other['0.weight'])


@pytest.mark.parametrize('bias', [True, False])
def test_branches_know_whether_the_stock_convolution_has_a_bias(bias):
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=bias).double()
    branches = ACNet.from_layer(conv)
    assert branches.stock_bias == bias
    assert {parameter.dtype for parameter in branches.parameters()} == {torch.double}


BRANCHES = ['DBB', 'OfflineOREPA', 'XVolution', 'ACNet', 'RepVGG', 'QARepVGG', 'MobileOne']
with_branches = pytest.mark.parametrize('kind', BRANCHES)


@with_branches
def test_the_bias_is_kept_also_from_a_plain_checkpoint(kind):
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).eval()
    nn.init.uniform_(plain[0].bias, -5, 5)
    x = torch.randn(2, 4, 8, 8)
    spec = {'type': kind, 'init_identity': True}
    with torch.no_grad():
        expected = plain(x)
        model = mmasr.attach(copy.deepcopy(plain), spec, sites=['0'])
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        other = mmasr.attach(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), spec, sites=['0']).eval()
        assert not other.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)


@with_branches
def test_a_replaced_layer_keeps_type_mode_hooks_and_parameters(kind):
    conv = nn.Conv2d(4, 4, 3, padding=1).double().eval()
    calls = []
    handle = conv.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    conv.register_forward_pre_hook(lambda module, args, kwargs: calls.append('before'), with_kwargs=True)
    weight, bias = conv.weight, conv.bias
    model = mmasr.attach(nn.Sequential(conv), {'type': kind}, sites=['0'])
    x = torch.randn(2, 4, 8, 8, dtype=torch.double)
    model(x)
    assert calls == ['before', kind]
    assert not any(module.training for module in model[0].modules())
    assert all(p.dtype == torch.double for p in model.parameters())
    assert {id(weight), id(bias)} <= {id(p) for p in model.parameters()}
    mmasr.fold(model)
    calls.clear()
    model(x)
    assert calls == ['before', type(model[0]).__name__]
    handle.remove()
    model(x)
    assert calls[2:] == ['before']
    if kind != 'XVolution':
        assert model[0].weight is weight
        assert model[0].bias is bias


@with_branches
def test_the_branches_of_a_frozen_layer_are_frozen(kind):
    frozen = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False))
    model = mmasr.attach(frozen, {'type': kind}, sites=['0'])
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in mmasr.fold(model).parameters())


@with_branches
def test_convolutions_that_a_kind_does_not_support_are_not_default_sites(kind):
    network = nn.ModuleDict(
        {
            'layer3': nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3),
                nn.Conv2d(4, 4, 3, padding='same'),
                nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
            )
        }
    )
    state = torch.get_rng_state()
    sites = REPARAMETERIZATIONS[kind].default_sites(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert 'layer3.0' in sites
    mmasr.attach(network, {'type': kind})  # which no default site prevents


@pytest.mark.parametrize('kind', [*BRANCHES, 'OREPA', 'ASR'])
def test_init_identity_is_exact_in_double_precision(kind):
    layer = nn.BatchNorm2d(64) if kind == 'ASR' else nn.Conv2d(64, 64, 3, padding=1)
    plain = nn.Sequential(layer).double().eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.double)
    attention = {'attention': {'type': 'SE'}} if kind == 'ASR' else {}
    with torch.no_grad():
        expected = plain(x)
        model = mmasr.attach(plain, {'type': kind, **attention}, sites=['0'], init_identity=True)
        # The BatchNorm of a branch rounds a few times; a start in float32 would differ by 1e-7.
        assert (model(x) - expected).abs().max() <= 1e-14 * expected.abs().max()
