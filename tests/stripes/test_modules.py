"""Attention modules of four libraries: which are found, and which values are read."""

import pytest
import timm
import torch
from helpers import randomize
from mmdet.models.layers import SELayer as DetSELayer
from mmpretrain.models import MobileNetV3, SEResNet
from mmpretrain.models.utils import SELayer as PretrainSELayer
from torch import nn

import mmasr
from mmasr.attention import ATTENTIONS
from mmasr.errors import InputError
from mmasr.stripes import VALUES, Observer, attention_modules


def kappa(name):
    return lambda: ATTENTIONS[name](16)


#: Kind of attention -> how to build it with 16 channels, and how to compute its values from the input.
MODULES = {
    **{name: (kappa(name), lambda m, x: m.weights(x)) for name in ATTENTIONS},
    'mmdet SELayer': (lambda: DetSELayer(16, 4), lambda m, x: m.conv2(m.conv1(x.mean((2, 3), keepdim=True)))),
    'mmpretrain SELayer': (
        lambda: PretrainSELayer(16, ratio=4),
        lambda m, x: m.conv2(m.conv1(x.mean((2, 3), keepdim=True))),
    ),
    'timm SE': (
        lambda: timm.layers.SEModule(16, rd_channels=4, add_maxpool=True),
        lambda m, x: m.fc2(
            m.fc1((x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)) / 2).relu()
        ).sigmoid(),
    ),
    'timm ECA': (
        lambda: timm.layers.EcaModule(16),
        lambda m, x: m.conv(x.mean((2, 3))[:, None]).sigmoid(),
    ),
}


@pytest.mark.parametrize('kind', MODULES)
def test_the_values_of_every_kind_are_read(kind):
    make, values = MODULES[kind]
    module = randomize(make()).eval()
    network = nn.Sequential(nn.Conv2d(3, 16, 1), module)
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        with Observer(network) as observer:
            output = network(x)
            network(x[:2])
        assert torch.equal(network(x), output)  # observing changes nothing, and has ended
        features = network[0](x)
        v = values(module, features).reshape(5, 16)
    (stripes,) = observer.stripes.values()
    seen = torch.cat([v, v[:2]]).double()
    assert stripes.v.count == 7
    assert stripes.spatial == (kind == 'CBAM')
    torch.testing.assert_close(stripes.v.mean, seen.mean(dim=0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stripes.v.std, seen.std(dim=0, correction=0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(stripes.rows[1], seen, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stripes.rows[0][:5], features.mean((2, 3)).double(), rtol=1e-5, atol=1e-6)
    if kind != 'CBAM':  # the module multiplies by the values that were read
        torch.testing.assert_close(output, features * v[..., None, None])


NETWORKS = {
    'mmpretrain SEResNet': (lambda: SEResNet(50, base_channels=8, stem_channels=8), 16),
    'mmpretrain MobileNetV3': (lambda: MobileNetV3('small'), 9),
    'timm seresnet18': (lambda: timm.create_model('seresnet18'), 8),
    'timm ecaresnet26t': (lambda: timm.create_model('ecaresnet26t'), 8),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_all_attention_in_networks_of_other_libraries_is_found(name):
    make, count = NETWORKS[name]
    assert len(attention_modules(make())) == count


def test_modules_have_the_names_and_the_order_of_the_network():
    seresnet = SEResNet(50, base_channels=8, stem_channels=8)
    assert list(attention_modules(seresnet))[:2] == ['layer1.0.se_layer', 'layer1.1.se_layer']


def test_attention_inside_an_asr_is_excluded():
    """It does not depend on the image."""
    network = mmasr.attach(timm.create_model('seresnet18'), {'type': 'SE'})
    assert list(attention_modules(network)) == [f'layer{i}.{j}.se' for i in (1, 2, 3, 4) for j in (0, 1)]


class CustomAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))


class SpatialAttention(CustomAttention):
    def forward(self, x):
        return x * self.gate(x.mean(1, keepdim=True))


class UnusedGate(CustomAttention):
    def forward(self, x):
        return x


def test_an_unregistered_custom_module_is_rejected():
    with pytest.raises(InputError, match='Sequential has no attention that depends on its input; known are'):
        Observer(nn.Sequential(nn.Conv2d(3, 4, 1), CustomAttention()))


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setitem(VALUES, f'{CustomAttention.__module__}.CustomAttention', 'gate')


@pytest.mark.usefixtures('_registered')
def test_a_custom_module_is_registered_in_one_line():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), CustomAttention())
    x = torch.randn(3, 3, 5, 5)
    with Observer(network) as observer:
        network(x)
    expected = network[0](x).mean((2, 3)).sigmoid().double()
    torch.testing.assert_close(observer.stripes['1'].rows[1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures('_registered')
@pytest.mark.parametrize('size', [5, 2], ids=['5', '2, as many positions as channels'])
def test_values_that_differ_by_position_are_rejected(size):
    spatial = SpatialAttention()
    shapes = rf'of shape \(3, 1, {size}, {size}\) for an input of shape \(3, 4, {size}, {size}\)'
    observer = Observer(nn.Sequential(spatial))
    with pytest.raises(InputError, match=rf'^0 \(SpatialAttention\): its values are {shapes}'), observer:
        spatial(torch.randn(3, 4, size, size))


@pytest.mark.usefixtures('_registered')
def test_missing_values_are_rejected():
    module = UnusedGate()
    observer = Observer(nn.Sequential(module))
    with pytest.raises(InputError, match=r'^0 \(UnusedGate\): its values are missing for an input'), observer:
        module(torch.randn(3, 4, 5, 5))
