"""The comparison of folded layers with the trained ones finds every kind of error in folding."""

import copy

import pytest
import torch
from helpers import randomize
from mmpretrain.models.utils.norm import LayerNorm2d
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.convolutions.orepa import OREPAKxK, OREPALargeKernel
from mmasr.core.fold import find_foldable, fold
from mmasr.core.verification import BOUNDS, TrainedLayers, check_layers
from mmasr.errors import InputError


def network(kernel=3, groups=1, bias=False):
    conv = nn.Conv2d(16, 16, kernel, 2, kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv, nn.BatchNorm2d(16)
    )


def trained(spec, sites=('3',), **shape):
    model = mmasr.attach(network(**shape), spec, sites=list(sites))
    return randomize(model).eval()


def differences(model, change=lambda folded: None, images=None):
    """Fold a copy of a network, change it, and compare its layers with the trained ones."""
    folded = copy.deepcopy(model)
    layers = TrainedLayers(folded, find_foldable(folded), {})
    fold(folded)
    with torch.no_grad():
        change(folded)
    with layers.compared(folded) as found:
        folded(torch.randn(2, 3, 24, 24) if images is None else images)
    return found


def refused(found):
    with pytest.raises(InputError, match=r'the folded layer \d differs from the trained one in channel'):
        check_layers(found, {})


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
}
each_network = pytest.mark.parametrize('name', NETWORKS)


@each_network
def test_correctly_folded_layers_agree(name):
    spec, shape = NETWORKS[name]
    found = differences(trained(spec, **shape))
    assert list(found) == list(shape.get('sites', ('3',)))
    worst = check_layers(found, {})
    assert worst.relative < 1e-5  # float32 rounds to 6e-8, in sums of some hundred products


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
    refused(differences(trained(spec, **shape), scale_channel(factor, site)))


def test_a_channel_that_is_silent_on_the_images_is_checked_too():
    model = trained({'type': 'SE'}, sites=('4',))
    with torch.no_grad():
        model[3].weight[5] = 0  # nothing of the images reaches channel 5 of the normalization
    refused(differences(model, scale_channel(1.01, '4'), images=torch.zeros(2, 3, 24, 24)))


def test_a_small_channel_counts_as_much_as_a_large_one():
    model = trained({'type': 'SE'}, sites=('4',))
    with torch.no_grad():
        for parameter in (model[4].weight, model[4].bias):
            parameter[5] *= 1e-6
    refused(differences(model, scale_channel(1.01, '4')))


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
    refused(differences(model))


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
    refused(differences(model))


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
    refused(differences(model))


@pytest.mark.parametrize('branch', ['square', 'vertical', 'horizontal'])
def test_a_branch_whose_statistics_are_not_folded_is_found(monkeypatch, branch):
    model = trained({'type': 'ACNet'})
    original = ACNet.to_single_layer

    def wrong(self):
        getattr(self, branch)[1].running_var.mul_(1.1)
        return original(self)

    monkeypatch.setattr(ACNet, 'to_single_layer', wrong)
    refused(differences(model))


def test_a_layer_of_another_shape_is_refused():
    def change(folded):
        folded[3] = nn.Conv2d(16, 16, 3, bias=False)

    with pytest.raises(InputError, match=r'3: the folded layer has an output of \(2, 16, 20, 20\), not'):
        differences(trained({'type': 'OREPA'}), change)


def test_the_bound_is_that_of_the_types_of_the_layer():
    found = differences(trained({'type': 'SE'}, sites=('1', '4')), scale_channel(1.01, '4'))
    refused(found)
    types = {'4.weight': torch.bfloat16, '1.weight': torch.float32, '3.weight': torch.bfloat16}
    assert check_layers(found, types).name == '4'
    assert BOUNDS[torch.float32] < found['4'].relative < BOUNDS[torch.bfloat16]
    with pytest.raises(InputError):
        check_layers(found, {**types, '4.weight': torch.float16})


def test_comparing_leaves_the_random_numbers_of_the_network_alone():
    """A network that draws noise must draw the same with and without the comparison."""
    images = torch.randn(2, 3, 24, 24)
    model = trained({'type': 'SE'})
    before = torch.get_rng_state()
    assert differences(model, images=images).keys() == {'3'}
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize('layout', ['channel_first', 'channel_last'])
@pytest.mark.parametrize('size', [16, 24], ids=['as many pixels as channels', 'more pixels'])
def test_layer_norms_of_convnext_are_compared_in_both_layouts(layout, size):
    norm = mmasr.attach(nn.ModuleDict({'norm': LayerNorm2d(16)}), {'type': 'SE'}, sites=['norm'])
    randomize(norm).eval()
    layers = TrainedLayers(norm, find_foldable(norm), {})
    fold(norm)
    images = torch.randn(2, 16, size, size)
    with layers.compared(norm) as found:
        norm['norm'](images if layout == 'channel_first' else images.permute(0, 2, 3, 1), layout)
    check_layers(found, {})
    with torch.no_grad():
        norm['norm'].weight[3] *= 1.1
        norm['norm'].bias[3] *= 1.1
    with layers.compared(norm) as found:
        norm['norm'](images if layout == 'channel_first' else images.permute(0, 2, 3, 1), layout)
    with pytest.raises(InputError, match='the folded layer norm differs from the trained one'):
        check_layers(found, {})
