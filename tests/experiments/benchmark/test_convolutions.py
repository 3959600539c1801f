"""The variants of a network with convolutions that train with branches."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import mmasr
from mmasr.convolutions.dynamic import DynamicConv, SelfAttention
from mmasr.core.reparameterization import REPARAMETERIZATIONS
from mmasr.experiments.benchmark.convolutions import (
    GlobalSelfAttention,
    compute_by_autograd,
    convolution_types,
    convolution_variants,
    parse_spec,
    use_global_attention,
)
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.workload import image_workload


def test_all_variants_compute_the_same_at_the_start():
    plain = torchvision.models.resnet18().eval()
    x = torch.randn(2, 3, 64, 64)
    found = convolution_variants(plain, ['OREPA', 'OfflineOREPA', 'DBB'])
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


def test_global_self_attention_is_included_with_xvolution():
    plain = torchvision.models.resnet18().eval()
    specs = ['XVolution', 'XVolution,branch=sa', 'XVolution,branch=involution,convolution=False']
    found = convolution_variants(plain, specs)
    both = [name for spec in specs for name in (spec, f'{spec}, deployed')]
    assert list(found) == ['plain', *both, 'global self-attention', 'global self-attention, fused']
    x = torch.randn(2, 3, 64, 64)
    for name, model in found.items():
        dynamic = sum(isinstance(module, DynamicConv) for module in model.modules())
        assert dynamic == (
            4 if name.endswith(', deployed') else 0
        )  # the deployed form keeps the second branch
        if 'convolution=False' not in name:  # the second branch has a scale of a millionth
            with torch.no_grad():
                torch.testing.assert_close(model.eval()(x), plain(x), msg=name, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_global_self_attention_includes_every_position(fused, stride):
    layer = GlobalSelfAttention(SelfAttention(16, 32, 3, stride), fused).double()
    x = torch.randn(2, 16, 5, 6, dtype=torch.double)
    query = layer.query(x)
    q, k, v = (y.flatten(2).view(2, 8, 4, -1) for y in (query, layer.key(x), layer.value(x)))
    weights = torch.einsum('nhdp,nhdu->nhpu', q, k).div(2).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum('nhpu,nhdu->nhdp', weights, v).reshape(query.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_only_global_self_attention_grows_with_the_square_of_the_positions():
    def saved(branch, side):
        layer = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
        spec = {'type': 'XVolution', 'branch': 'sa' if branch == 'global' else branch}
        mmasr.attach(layer, spec, sites=['0'])
        layer = use_global_attention(layer) if branch == 'global' else layer
        return saved_for_backward(layer, image_workload(torch.randn(1, 16, side, side)))

    for branch in ('pssa', 'sa', 'involution'):
        assert saved(branch, 32) <= 4.1 * saved(branch, 16)  # some of it does not depend on the size
    weights = 8 * 32**4 * 4  # bytes of the weights of all pairs of positions, in eight heads
    assert saved('global', 32) > weights


def test_all_types_but_asr_are_offered():
    assert {'ACNet', 'DBB', 'OREPA', 'OfflineOREPA', 'XVolution'} <= set(convolution_types())
    assert set(convolution_types()) == REPARAMETERIZATIONS.keys() - {'ASR'}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('Nope', 'Nope: unknown type; known are ACNet, DBB'),
        ('ASR', 'ASR: unknown type; known are ACNet, DBB'),
        ('XVolution,arm=sa', 'arm=sa is not an option'),
        ('DBB,', 'is not an option'),
    ],
)
def test_an_unknown_type_or_option_is_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(text)


def test_a_type_without_init_identity_can_be_measured():
    found = convolution_variants(torchvision.models.resnet18(), ['ACNet'])
    assert list(found) == ['plain', 'ACNet', 'ACNet, deployed']


@pytest.mark.parametrize(
    'options', [{'kernel_size': 1}, {'kernel_size': 3}, {'kernel_size': 7}, {'kernel_size': 3, 'groups': 8}]
)
def test_the_authors_form_of_orepa_has_the_same_outputs_and_gradients(options):
    ours = mmasr.attach(nn.Sequential(nn.Conv2d(16, 32, **options)), {'type': 'OREPA'}).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs = compute_by_autograd(copy.deepcopy(ours))
    x = torch.randn(2, 16, 9, 9, dtype=torch.double)
    direction = torch.randn_like(ours(x))
    found, expected = (
        (y, *torch.autograd.grad((y * direction).sum(), [*model.parameters()]))
        for model in (ours, theirs)
        for y in [model(x)]
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_authors_form_of_orepa_saves_every_branch():
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    mmasr.attach(network, {'type': 'OREPA'})
    workload = image_workload(torch.randn(1, 16, 4, 4))
    authors = compute_by_autograd(copy.deepcopy(network))
    kernel = 16 * 16 * 9 * 4
    # Five kernels before they are scaled; the sixth is the layer's own weight.
    assert saved_for_backward(authors, workload) - saved_for_backward(network, workload) >= 5 * kernel
