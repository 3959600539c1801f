"""The comparison of folded layers with the trained ones finds every kind of error in folding."""

import copy

import pytest
import timm
import torch
from helpers import randomize
from mmpretrain.models.utils.norm import LayerNorm2d
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.convolutions.orepa import OREPAKxK, OREPALargeKernel
from mmasr.core.fold import fold
from mmasr.core.foldable import find_foldable, fold_all
from mmasr.core.verification import TrainedLayers
from mmasr.errors import InputError


def network(kernel=3, groups=1, bias=False):
    conv = nn.Conv2d(16, 16, kernel, 2, kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv, nn.BatchNorm2d(16)
    )


def trained(spec, sites=('3',), **shape):
    model = mmasr.attach(network(**shape), spec, sites=list(sites))
    return randomize(model).eval()


def verify(model, change=lambda folded: None, images=None):
    """Fold a copy of a network, change it, and verify it; return the largest and all differences."""
    folded = copy.deepcopy(model)
    layers = TrainedLayers(folded, find_foldable(folded), model.state_dict())
    fold_all(folded)
    with torch.no_grad():
        change(folded)
    layers.check_tensors(folded)
    with layers.compared(folded) as found:
        folded(torch.randn(2, 3, 24, 24) if images is None else images)
    return layers.check_layers(found), found


def refused(*args, **options):
    with pytest.raises(InputError, match=r'differs from the trained'):
        verify(*args, **options)


NETWORKS = {
    'SE': ({'type': 'SE'}, {'sites': ('1', '4')}),
    'SE of a convolution with bias': ({'type': 'SE'}, {'bias': True}),
    'two ECA': ({'type': 'ASR', 'attention': {'type': 'ECA'}, 'delta': 2}, {'sites': ('4',)}),
    'OREPA': ({'type': 'OREPA'}, {}),
    'OREPA with bias': ({'type': 'OREPA'}, {'bias': True}),
    'OREPA 1 x 1': ({'type': 'OREPA'}, {'kernel': 1}),
    'OREPA 5 x 5': ({'type': 'OREPA'}, {'kernel': 5}),
    'OREPA 7 x 7': ({'type': 'OREPA'}, {'kernel': 7}),
    'OREPA with 8 groups': ({'type': 'OREPA'}, {'groups': 8}),
    'ACNet': ({'type': 'ACNet'}, {}),
    'DBB': ({'type': 'DBB'}, {}),
    'OfflineOREPA': ({'type': 'OfflineOREPA'}, {}),
    'XVolution': ({'type': 'XVolution'}, {}),
    'RepVGG': ({'type': 'RepVGG'}, {}),
    'QARepVGG': ({'type': 'QARepVGG'}, {}),
    'MobileOne': ({'type': 'MobileOne'}, {}),
    'DilatedReparam': ({'type': 'DilatedReparam'}, {'kernel': 7, 'groups': 16}),
}
each_network = pytest.mark.parametrize('name', NETWORKS)


@each_network
def test_correctly_folded_layers_agree(name):
    spec, shape = NETWORKS[name]
    worst, found = verify(trained(spec, **shape))
    assert list(found) == list(shape.get('sites', ('3',)))
    assert worst.relative < 1e-7  # in double precision, except for the scale


@pytest.mark.parametrize('activation', [nn.ReLU6, nn.SiLU, nn.Identity])
def test_the_scale_comes_before_an_activation_inside_the_layer(activation):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), timm.layers.BatchNormAct2d(16, act_layer=activation))
    randomize(mmasr.attach(model, {'type': 'SE'}, sites=['1'])).eval()
    worst, _ = verify(model)
    assert worst.relative < 1e-7

    def scale_slightly(folded):
        folded[1].weight[5] *= 1.01

    refused(model, scale_slightly)


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
@pytest.mark.parametrize('size', [24, 25])
def test_a_convolution_that_pads_by_the_size_of_its_input_agrees(kernel, size):
    model = nn.Sequential(timm.layers.Conv2dSame(3, 16, kernel, 2), nn.BatchNorm2d(16))
    randomize(mmasr.attach(model, {'type': 'OREPA'}, sites=['0'])).eval()
    worst, _ = verify(model, images=torch.randn(2, 3, size, size))
    assert worst.relative < 1e-7


def scale_channel(factor, name):
    def change(folded):
        layer = folded[3 if isinstance(folded[4], nn.BatchNorm2d) and name == '3' else 4]
        weight = layer.dynamic.value.weight if hasattr(layer, 'dynamic') else layer.weight
        weight[5] *= factor

    return change


@pytest.mark.parametrize('factor', [1.01, 0.9, -1, 0], ids=['1 %', '10 %', 'sign', 'zero'])
@each_network
def test_one_channel_that_is_scaled_wrongly_is_found(name, factor):
    spec, shape = NETWORKS[name]
    site = shape.get('sites', ('3',))[-1]
    refused(trained(spec, **shape), scale_channel(factor, site))


def test_a_channel_that_is_silent_on_the_images_is_checked_too():
    model = trained({'type': 'SE'}, sites=('4',))
    with torch.no_grad():
        model[3].weight[5] = 0  # nothing of the images reaches channel 5 of the normalization
    refused(model, scale_channel(1.01, '4'), images=torch.zeros(2, 3, 24, 24))


def test_a_small_channel_counts_as_much_as_a_large_one():
    model = trained({'type': 'SE'}, sites=('4',))
    with torch.no_grad():
        for parameter in (model[4].weight, model[4].bias):
            parameter[5] *= 1e-6
    refused(model, scale_channel(1.01, '4'))


#: A scale that is computed wrongly everywhere, in training and folding alike.
WRONG_SCALES = {
    'halved': lambda v: v / 2,
    'squared': lambda v: v * v,
    'rolled': lambda v: v.roll(1),
    'reversed': lambda v: v.flip(0),
    'its mean': lambda v: v.mean().expand_as(v),
    'in half precision': lambda v: v.half().to(v),
    'one': torch.ones_like,
}


@pytest.mark.parametrize('name', WRONG_SCALES)
def test_a_scale_that_is_wrong_everywhere_is_found(monkeypatch, name):
    model = trained({'type': 'SE'}, sites=('1', '4'))
    scale = mmasr.ASR.scale
    monkeypatch.setattr(mmasr.ASR, 'scale', lambda self: WRONG_SCALES[name](scale(self)))
    refused(model)


@pytest.mark.parametrize('wrong', ['only the first κ', 'without the initial scale'])
def test_a_scale_that_ignores_a_part_of_its_definition_is_found(monkeypatch, wrong):
    model = trained({'type': 'ASR', 'attention': {'type': 'SE'}, 'delta': 2}, sites=('4',))
    with torch.no_grad():
        model[4].asr.initial.uniform_(0.5, 1.5)

    def scale(self):
        values = [
            attention.weights(psi[None, :, None, None])
            for psi, attention in zip(self.psi, self.attention, strict=True)
        ]
        product = values[0] if wrong == 'only the first κ' else values[0] * values[1]
        return product.flatten() / (self.initial if wrong == 'only the first κ' else 1)

    monkeypatch.setattr(mmasr.ASR, 'scale', scale)
    refused(model)


@pytest.mark.parametrize('change', ['transposed', 'flipped', 'without a branch'])
@pytest.mark.parametrize('kernel', [3, 7])
def test_a_wrong_kernel_of_orepa_is_found(monkeypatch, change, kernel):
    model = trained({'type': 'OREPA'}, kernel=kernel)
    cls = OREPAKxK if kernel == 3 else OREPALargeKernel
    original = cls.kernel

    def wrong(self, weight):
        if change == 'transposed':
            return original(self, weight).transpose(0, 1)
        if change == 'flipped':
            return original(self, weight).flip(2, 3)
        scale = self.scale.clone()
        self.scale.data[-1] = 0
        result = original(self, weight)
        self.scale.data.copy_(scale)
        return result

    monkeypatch.setattr(cls, 'kernel', wrong)
    refused(model)


@pytest.mark.parametrize('branch', ['square', 'vertical', 'horizontal'])
def test_a_branch_whose_statistics_are_not_folded_is_found(monkeypatch, branch):
    model = trained({'type': 'ACNet'})
    original = ACNet.to_single_layer

    def wrong(self):
        getattr(self, branch)[1].running_var.mul_(1.1)
        return original(self)

    monkeypatch.setattr(ACNet, 'to_single_layer', wrong)
    refused(model)


def test_a_layer_of_another_shape_is_refused():
    def shape(folded):
        folded[3].weight = nn.Parameter(torch.zeros(16, 16, 5, 5))

    def stride(folded):
        folded[3].stride = 1

    model = trained({'type': 'OREPA'})
    with pytest.raises(
        InputError, match=r'3.weight .* has the shape and type \(16, 16, 5, 5\), torch.float32, not'
    ):
        verify(model, shape)
    with pytest.raises(InputError, match=r'3: the folded layer has an output of \(2, 16, 22, 22\), not'):
        verify(model, stride)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda folded: folded[0].weight[2, 1].mul_(1 + 1e-6), r'0\.weight .* is not the trained tensor'),
        (
            lambda folded: folded[1].num_batches_tracked.add_(1),
            r'1\.num_batches_tracked .* is not the trained',
        ),
        (lambda folded: folded[4].running_var[3].mul_(1 + 1e-6), r'4\.running_var .* differs .* channel 3'),
        (lambda folded: folded[0].half(), r'0\.weight .* is not the trained tensor'),
        (lambda folded: folded[4].half(), r'4\.weight .* the shape and type .*float16, not .*float32'),
        (
            lambda folded: folded[1].register_buffer('new', torch.ones(1)),
            r'1\.new .* is not the trained tensor',
        ),
        (lambda folded: folded.pop(0), r'the folded network lacks 4\.weight'),
        (lambda folded: folded[1].register_parameter('weight', None), r'the folded network lacks 1\.weight'),
    ],
    ids=['weight', 'count', 'statistics', 'type', 'type of a result', 'new', 'a layer less', 'a tensor less'],
)
def test_every_tensor_is_the_trained_one_or_a_result(change, message):
    model = trained({'type': 'SE'}, sites=('4',))
    with pytest.raises(InputError, match=message):
        verify(model, change)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_bound_is_the_rounding_of_the_tensors_own_type(dtype):
    """The others are in another type, which does not matter."""
    model = trained({'type': 'SE'}, sites=('4',))
    trained_weights = types(model, dtype)
    layers = TrainedLayers(model, find_foldable(model), trained_weights)
    fold(model)
    weights = layers.stored(model)
    assert weights['4.weight'].dtype == dtype
    assert weights['1.weight'].dtype == torch.bfloat16
    found = layers.check_tensors(model, weights, computed=torch.float32)
    eps = torch.finfo(dtype).eps
    assert found.relative <= max(eps, torch.finfo(torch.float32).eps)
    weights['4.weight'][5] *= 1 + max(2 * eps, 1e-6)
    with pytest.raises(InputError, match=r'4\.weight .* in channel 5 by .*, more than the rounding of'):
        layers.check_tensors(model, weights, computed=torch.float32)


def types(model, dtype):
    """Return the weights of a network in bfloat16, only those of layer 4 in a type."""
    floats = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    converted = {name: t.to(dtype if name.startswith('4.') else torch.bfloat16) for name, t in floats.items()}
    with torch.no_grad():
        for name, tensor in floats.items():
            tensor.copy_(converted[name])
    return model.state_dict() | converted


def test_comparing_leaves_the_random_numbers_of_the_network_alone():
    """A network that draws noise must draw the same with and without the comparison."""
    images = torch.randn(2, 3, 24, 24)
    model = trained({'type': 'SE'})
    before = torch.get_rng_state()
    assert verify(model, images=images)[1].keys() == {'3'}
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize('layout', ['channel_first', 'channel_last'])
@pytest.mark.parametrize('size', [16, 24], ids=['as many pixels as channels', 'more pixels'])
def test_layer_norms_of_convnext_are_compared_in_both_layouts(monkeypatch, layout, size):
    norm = mmasr.attach(nn.ModuleDict({'norm': LayerNorm2d(16)}), {'type': 'SE'}, sites=['norm'])
    randomize(norm).eval()
    images = torch.randn(2, 16, size, size)
    if layout == 'channel_last':
        images = images.permute(0, 2, 3, 1)

    def verified():
        folded = copy.deepcopy(norm)
        layers = TrainedLayers(folded, find_foldable(folded), norm.state_dict())
        fold(folded)
        with layers.compared(folded) as found:
            folded['norm'](images, layout)
        return layers.check_layers(found)

    assert verified().relative < 1e-12
    monkeypatch.setattr(mmasr.ASR, 'scale', lambda asr: torch.linspace(0.5, 1, 16).to(asr.psi))
    with pytest.raises(InputError, match='the folded layer norm differs from the trained one'):
        verified()
