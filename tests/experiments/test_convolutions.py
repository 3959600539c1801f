"""Convolutions with branches in every form that the benchmark measures."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import mmasr
from mmasr.convolutions.dynamic import DynamicConv, SelfAttention
from mmasr.experiments.benchmark.convolutions import (
    GlobalSelfAttention,
    by_autograd,
    convolutions,
    globally,
    kind_and_options,
)
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.workload import images


@pytest.mark.parametrize('make', [torchvision.models.resnet18, torchvision.models.resnext50_32x4d])
def test_every_variant_computes_the_same_at_the_start(make):
    plain = make().eval()
    x = torch.randn(2, 3, 64, 64)
    found = convolutions(plain, ['OREPA', 'OfflineOREPA', 'DBB'])
    assert list(found) == [
        'plain',
        'OREPA',
        "OREPA, the authors' form",
        'OREPA, deployed',
        'OfflineOREPA',
        'OfflineOREPA, deployed',
        'DBB',
        'DBB, deployed',
    ]
    with torch.no_grad():
        expected = plain(x)
        for name, model in found.items():
            torch.testing.assert_close(model.eval()(x), expected, msg=name, rtol=1e-4, atol=1e-5)


def test_xvolution_is_measured_beside_global_self_attention():
    plain = torchvision.models.resnet18().eval()
    kinds = ['XVolution', 'XVolution,branch=sa', 'XVolution,branch=involution,convolution=False']
    found = convolutions(plain, kinds)
    both = [name for kind in kinds for name in (kind, f'{kind}, deployed')]
    assert list(found) == ['plain', *both, 'global self-attention', 'global self-attention, fused']
    x = torch.randn(2, 3, 64, 64)
    for name, model in found.items():
        dynamic = sum(isinstance(module, DynamicConv) for module in model.modules())
        assert dynamic == (4 if name.endswith(', deployed') else 0)  # something is left to measure
        if 'convolution=False' not in name:  # a scale of a millionth is left of the second branch
            with torch.no_grad():
                torch.testing.assert_close(model.eval()(x), plain(x), msg=name, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_global_self_attention_sees_every_position(fused, stride):
    layer = GlobalSelfAttention(SelfAttention(16, 32, 3, stride), fused).double()
    x = torch.randn(2, 16, 5, 6, dtype=torch.double)
    query = layer.query(x)
    q, k, v = (y.flatten(2).view(2, 8, 4, -1) for y in (query, layer.key(x), layer.value(x)))
    weights = torch.einsum('nhdp,nhdu->nhpu', q, k).div(2).exp()
    expected = torch.einsum('nhpu,nhdu->nhdp', weights / weights.sum(-1, keepdim=True), v).reshape(query.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_what_grows_with_the_square_of_the_positions():
    def kept(branch, side):
        layer = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
        mmasr.attach(layer, {'type': 'XVolution', 'branch': 'sa' if branch == 'global' else branch}, sites=['0'])
        layer = globally(layer) if branch == 'global' else layer
        return saved_for_backward(layer, images(torch.randn(1, 16, side, side)))

    for branch in ('pssa', 'sa', 'involution'):
        assert kept(branch, 32) <= 4.1 * kept(branch, 16)  # and what does not grow
    weights = 8 * 32**4 * 4  # of all pairs of positions, for eight heads, in bytes
    assert kept('global', 32) > weights


@pytest.mark.parametrize(
    ('text', 'message'),
    [('Nope', 'Nope: unknown; known are ACNet'), ('XVolution,arm=sa', 'arm=sa is not an option'), ('DBB,', 'is not an option')],
)
def test_a_kind_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        kind_and_options(text)


def test_a_kind_that_has_no_identity_to_start_from():
    assert list(convolutions(torchvision.models.resnet18(), ['ACNet'])) == ['plain', 'ACNet', 'ACNet, deployed']


@pytest.mark.parametrize(
    'options', [{'kernel_size': 1}, {'kernel_size': 3}, {'kernel_size': 7}, {'kernel_size': 3, 'groups': 8}]
)
def test_the_authors_form_has_the_kernel_and_the_gradients_of_ours(options):
    ours = mmasr.attach(nn.Sequential(nn.Conv2d(16, 32, **options)), {'type': 'OREPA'}).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs = by_autograd(copy.deepcopy(ours))
    x = torch.randn(2, 16, 9, 9, dtype=torch.double)
    direction = torch.randn_like(ours(x))
    found, expected = (
        (y, *torch.autograd.grad((y * direction).sum(), [*model.parameters()])) for model in (ours, theirs) for y in [model(x)]
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_authors_form_keeps_every_branch():
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    mmasr.attach(network, {'type': 'OREPA'})
    work = images(torch.randn(1, 16, 4, 4))
    kernel = 16 * 16 * 9 * 4
    more = saved_for_backward(by_autograd(copy.deepcopy(network)), work) - saved_for_backward(network, work)
    assert more >= 5 * kernel  # before each is scaled; the sixth is the layer's own weight
