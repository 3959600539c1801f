"""Noise in BatchNorm, the paper's Table 9."""

import copy

import pytest
import torch
import torchvision
from helpers import agrees, built, classifier, randomize, save_network
from mmengine.config import Config
from mmengine.model import initialize
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.core.sites import find_sites
from mmasr.deploy.reparameterize import reparameterize
from mmasr.experiments.noise import NoisyBN, add_noise

NOISE = {'n_a': 0.8, 'n_b': 0.5}


def by_formula(norm, x, n_a, n_b):
    """Compute [(x - μ) / σ ⊙ N_a + N_b] ⊙ γ + β, with the statistics of the batch in training."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    shape = (1, -1, 1, 1)
    normalized = (x - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    n_a, n_b = (n.view(shape) if isinstance(n, torch.Tensor) else n for n in (n_a, n_b))
    return (normalized * n_a + n_b) * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('noise', [NOISE, {'n_a': -1.5}, {}])
def test_constant_noise_matches_the_formula(training, noise):
    norm = randomize(NoisyBN(6, **noise)).double().train(training)
    x = torch.randn(4, 6, 5, 3, dtype=torch.double, requires_grad=True)
    expected = by_formula(norm, x, noise.get('n_a', 1), noise.get('n_b', 0))
    plain = nn.BatchNorm2d(6).double().train(training)
    plain.load_state_dict(norm.state_dict())
    found = norm(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    plain(x)
    assert torch.equal(norm.running_mean, plain.running_mean)  # the noise does not enter the statistics
    assert norm.num_batches_tracked == plain.num_batches_tracked == training
    direction = torch.randn_like(found)
    of = [x, norm.weight, norm.bias]
    for a, b in zip(
        *(torch.autograd.grad((y * direction).sum(), of) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('training', [True, False])
def test_random_noise_is_drawn_for_every_channel_and_forward_pass(training):
    channels = 4000
    norm = NoisyBN(channels, n_a={'std': 0.3}, n_b={'std': 0.2}).double().train(training)
    x = torch.randn(2, channels, 4, 4, dtype=torch.double)
    plain = by_formula(norm, x, 1, 0)
    first, second = norm(x), norm(x)
    assert not torch.equal(first, second)
    # Fit a line per channel from the output without noise to the output with noise: slope N_a, intercept N_b.
    centered = plain - plain.mean((0, 2, 3), keepdim=True)
    n_a = (centered * first).sum((0, 2, 3)) / centered.square().sum((0, 2, 3))
    torch.testing.assert_close(
        first, by_formula(norm, x, n_a, (first - n_a.view(1, -1, 1, 1) * plain).mean((0, 2, 3)))
    )
    n_b = (first - n_a.view(1, -1, 1, 1) * plain).mean((0, 2, 3))
    for noise, mean, deviation in ((n_a, 1, 0.3), (n_b, 0, 0.2)):
        assert noise.mean().item() == pytest.approx(mean, abs=5 * deviation / channels**0.5)
        # Five times the relative standard error of a standard deviation from 4000 samples.
        assert noise.std().item() == pytest.approx(deviation, rel=0.06)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('noise', [NOISE, {'n_a': {'std': 0.3}, 'n_b': {'std': 0.3}}])
def test_noisy_bn_can_be_a_host(training, noise):
    network = nn.Sequential(randomize(NoisyBN(16, **noise))).train(training)
    plain = copy.deepcopy(network)
    mmasr.attach(network, {'type': 'SE'}, sites=['0'])
    scale = network[0].asr.scale().view(-1, 1, 1)
    x = torch.randn(2, 16, 4, 4)
    torch.manual_seed(0)
    expected = plain(x) * scale
    torch.manual_seed(0)
    torch.testing.assert_close(network(x), expected)
    folded = mmasr.fold(network)
    assert type(folded[0]) is NoisyBN
    torch.manual_seed(0)
    torch.testing.assert_close(folded(x), expected)


def test_add_noise_to_any_network():
    plain = torchvision.models.resnet18().eval()
    noisy = add_noise(copy.deepcopy(plain), **NOISE)
    assert noisy.state_dict().keys() == plain.state_dict().keys()
    norms = [module for module in noisy.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(type(norm) is NoisyBN and (norm.n_a, norm.n_b) == (0.8, 0.5) for norm in norms)
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(noisy(x), plain(x))
    assert torch.equal(add_noise(copy.deepcopy(plain))(x), plain(x))  # no noise by default
    assert mmasr.attach(noisy, {'type': 'SE'})(x).shape == (1, 1000)


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (
            lambda: mmasr.attach(nn.Sequential(nn.BatchNorm2d(4)), {'type': 'SE'}, sites=['0']),
            r"^0 \(Host\w+\) can't become",
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False)), r'^0 .* with γ and β'),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1)), 'Sequential has no BatchNorm2d'),
    ],
)
def test_unsupported_networks_are_rejected(network, message):
    network = network()
    with pytest.raises(ValueError, match=message):
        add_noise(network)


@pytest.mark.parametrize(
    'noise', [NOISE, {'n_a': {'std': 0.1}, 'n_b': {'std': 0.1}}], ids=['constant', 'random']
)
def test_network_with_noise_deploys_with_its_noise(tmp_path, noise):
    backbone = {
        **{'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'asr': {'attention': {'type': 'SE'}}},
        'norm_cfg': {'type': 'mmasr.NoisyBN', **noise},
    }
    network = save_network(tmp_path / 'a.pth', classifier(backbone, 64), randomize)
    report = reparameterize(tmp_path / 'a.pth')
    config = Config.fromfile(report.config)
    assert config.model.backbone.type == 'mmasr.ResNetCIFAR'
    assert config.custom_imports.imports == ['mmasr']
    deployed = built(config, report.checkpoint)
    assert all(type(m) is NoisyBN for m in deployed.modules() if isinstance(m, nn.BatchNorm2d))
    if noise is NOISE:
        assert agrees(deployed, network, torch.randn(2, 3, 32, 32))


def test_control_starts_with_scale_one_half_at_the_sites_of_asr():
    init_cfg = [
        {'type': 'Kaiming', 'layer': 'Conv2d'},
        {'type': 'Constant', 'val': 1, 'layer': '_BatchNorm'},
        {'type': 'mmasr.SitesConstant', 'val': 0.5},
    ]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build({'type': 'mmasr.ResNetCIFAR', 'depth': 20, 'init_cfg': init_cfg})
        network.init_weights()
    sites = find_sites(network)
    assert len(sites) == 9
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(0.5 if name in sites else 1).all(), name


def test_control_in_a_network_without_sites_is_rejected():
    with pytest.raises(
        ValueError, match='SitesConstant has nothing to initialize: Sequential is not a network'
    ):
        initialize(nn.Sequential(nn.BatchNorm2d(4)), {'type': 'mmasr.SitesConstant', 'val': 0.5})
