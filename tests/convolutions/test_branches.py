"""All kinds with branches: their start as the plain convolution, and whole networks."""

import copy

import pytest
import timm
import torch
import torchvision
from helpers import classifier, randomize
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import mmasr
from mmasr.convolutions.branches import center, identity_kernel, init_silent, init_unchanging
from mmasr.core.reparameterization import REPARAMETERIZATIONS, BranchReparameterization
from mmasr.deploy.reparameterize import reparameterize

KINDS = sorted(
    name for name, kind in REPARAMETERIZATIONS.items() if issubclass(kind, BranchReparameterization)
)
with_kind = pytest.mark.parametrize('kind', KINDS)


def plain_convolution(kind, bias=False, **options):
    """Return a network of one convolution that a kind supports."""
    size = 7 if kind == 'DilatedReparam' else 3
    shape = {'kernel_size': size, 'padding': size // 2, 'bias': bias, **options}
    if kind == 'DilatedReparam':
        shape['groups'] = 32
    return nn.Sequential(nn.Conv2d(32, 32, **shape)).eval()


def attached(kind, plain, init_identity=True):
    return mmasr.attach(copy.deepcopy(plain), {'type': kind, 'init_identity': init_identity}, sites=['0'])


@with_kind
@pytest.mark.parametrize(
    'options',
    [{}, {'stride': 2}, {'groups': 4}, {'groups': 32}],
    ids=['plain', 'stride', 'groups', 'depthwise'],
)
@torch.no_grad()
def test_init_identity_is_exact_in_eval_mode(kind, options):
    plain = plain_convolution(kind, **options)
    model = attached(kind, plain)
    x = 100 * torch.randn(2, 32, 13, 18)
    expected = plain(x)
    assert torch.equal(model(x), expected)
    for name, parameter in model.named_parameters():  # the output depends on the convolution alone
        if name.endswith('conv.weight') and name not in (
            f'0.{model[0].main_weight}.weight',
            '0.point.weight',
        ):
            nn.init.normal_(parameter)
    assert torch.equal(model(x), expected)
    merged = mmasr.fold(model)
    assert type(merged[0]) is nn.Conv2d
    assert torch.equal(merged[0].weight, plain[0].weight)
    assert torch.equal(merged(x), expected)


@with_kind
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_init_identity_works_in_other_types(kind, dtype):
    plain = plain_convolution(kind).to(dtype)
    model = attached(kind, plain)
    assert {p.dtype for p in model.parameters()} == {dtype}
    x = torch.randn(2, 32, 9, 9, dtype=dtype)
    expected = plain(x)
    bound = torch.finfo(dtype).eps * expected.abs().max()
    assert (model(x) - expected).abs().max() <= bound
    assert (mmasr.fold(model)(x) - expected).abs().max() <= bound


@with_kind
@torch.no_grad()
def test_init_weights_sets_the_start_again(kind):
    """OpenMMLab calls it after it has set all other initial values."""
    model = attached(kind, plain_convolution(kind, bias=True))
    layer, x = model[0], torch.randn(2, 32, 9, 9)
    for _ in range(2):
        randomize(model)
        layer.init_weights()
        plain = plain_convolution(kind)
        plain[0].weight = layer.get_submodule(layer.main_weight).weight
        bias = layer.get_submodule(layer._main_bias).bias
        torch.testing.assert_close(model(x), plain(x) + bias.view(-1, 1, 1), rtol=1e-5, atol=1e-5)


@with_kind
@torch.no_grad()
def test_the_bias_of_the_convolution_is_kept(kind):
    plain = plain_convolution(kind, bias=True)
    nn.init.uniform_(plain[0].bias, -5, 5)
    x = torch.randn(2, 32, 9, 9)
    expected = plain(x)
    model = attached(kind, plain)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mmasr.fold(model)(x), expected, rtol=1e-5, atol=1e-5)


@with_kind
@pytest.mark.parametrize('init_identity', [False, True])
def test_every_branch_trains(kind, init_identity):
    model = attached(kind, plain_convolution(kind), init_identity).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # a branch that outputs 0 trains once its BatchNorm does
        optimizer.zero_grad()
        (model(torch.randn(4, 32, 8, 8)) ** 3).mean().backward()
        optimizer.step()
    ends = [layer.weight for name, layer in model[0].named_modules() if name in model[0].branch_ends]
    assert len(ends) == len(model[0].branch_ends)
    assert all(weight.grad.any() and weight.any() for weight in ends)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@with_kind
def test_one_asr_scales_all_branches(kind):
    model = attached(kind, plain_convolution(kind), init_identity=False)
    mmasr.attach(model, {'type': 'SE', 'ratio': 4}, sites=['0'], psi={'std': 1.0})
    randomize(model).eval()
    x = torch.randn(2, 32, 9, 9)
    with torch.no_grad():
        expected = model(x)
        folded = mmasr.fold(model, verify=x)(x)
    assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()


#: Name -> network, kind, and how many layers it replaces by default.
NETWORKS = {
    'ResNet-18, RepVGG': (torchvision.models.resnet18, 'RepVGG', 16),
    'ResNet-18, QARepVGG': (torchvision.models.resnet18, 'QARepVGG', 16),
    'MobileNetV2, RepVGG': (lambda: torchvision.models.mobilenet_v2(width_mult=0.35), 'RepVGG', 18),
    'MobileNetV2, MobileOne': (lambda: torchvision.models.mobilenet_v2(width_mult=0.35), 'MobileOne', 52),
    'ConvNeXt of timm, DilatedReparam': (
        lambda: timm.create_model('convnext_atto', depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)),
        'DilatedReparam',
        5,
    ),
    'ConvNeXt of torchvision, DilatedReparam': (
        lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)]),
        'DilatedReparam',
        3,
    ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_with_default_sites_trains_and_folds(name):
    make, kind, count = NETWORKS[name]
    plain = make()
    stock = {name: type(module) for name, module in plain.named_modules()}
    network = mmasr.attach(plain, {'type': kind}).train()
    assert sum(isinstance(module, BranchReparameterization) for module in network.modules()) == count
    network(torch.randn(4, 3, 64, 64)).square().mean().backward()
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        mmasr.fold(network, verify=x)
        assert (network(x) - expected).abs().max() <= 1e-4 * expected.abs().max()  # of up to 52 layers
    assert {name: type(module) for name, module in network.named_modules()} == stock


@pytest.mark.parametrize('name', NETWORKS)
def test_a_pretrained_network_computes_the_same_at_the_start(name):
    make, kind, _ = NETWORKS[name]
    plain = make().eval()
    network = mmasr.attach(copy.deepcopy(plain), {'type': kind, 'init_identity': True})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        if 'ConvNeXt' in name:  # its convolutions have a bias
            torch.testing.assert_close(network(x), plain(x), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(network(x), plain(x))


CONVNEXT = {'depths': [1, 1, 2, 1], 'channels': [8, 16, 32, 64]}
BACKBONES = {
    'RepVGG': {'type': 'ResNet', 'depth': 18, 'base_channels': 8, 'norm_eval': False, 'out_indices': (3,)},
    'DilatedReparam': {'type': 'mmpretrain.ConvNeXt', 'arch': CONVNEXT, 'out_indices': (3,)},
}
BACKBONES['QARepVGG'] = BACKBONES['MobileOne'] = BACKBONES['RepVGG']


OPTIONS = {'MobileOne': {'copies': 2}, 'DilatedReparam': {'small_kernels': ((5, 1), (3, 3))}}


@pytest.mark.parametrize('kind', BACKBONES)
def test_a_network_of_openmmlab_trains_and_deploys(tmp_path, kind):
    convs = {'type': kind, 'init_identity': True, **OPTIONS.get(kind, {})}
    backbone = {'type': 'mmasr.ASRBackbone', 'backbone': BACKBONES[kind], 'convs': convs}
    config = classifier(backbone, 64, neck=kind != 'DilatedReparam')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(config.model)
    trained.init_weights()
    trained.train()
    for _ in range(2):
        trained(torch.randn(4, 3, 64, 64)).square().mean().backward()
    torch.optim.SGD(trained.parameters(), lr=0.01).step()
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': trained.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    assert set(report.merged.values()) == {kind}
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type.endswith(BACKBONES[kind]['type'].split('.')[-1])
    assert 'convs' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('eps', [1e-5, 1e-3, 3e-7, 0.7])
def test_batch_norms_start_as_identity_and_at_zero(dtype, eps):
    norm = randomize(nn.BatchNorm2d(64, eps=eps)).to(dtype).eval()
    x = torch.randn(2, 64, 5, 5, dtype=dtype)
    bias = norm.bias.detach().clone()
    init_unchanging(norm)
    assert torch.equal(norm.bias, bias)
    nn.init.zeros_(norm.bias)
    assert torch.equal(norm(x), x)
    init_silent(norm)
    assert not norm(x).any()


def test_a_centered_kernel_has_zeros_between_and_around():
    kernel = torch.arange(1.0, 10).view(1, 1, 3, 3)
    assert torch.equal(center(kernel, 3), kernel)
    expected = torch.zeros(1, 1, 7, 7)
    expected[..., 1:6:2, 1:6:2] = kernel
    assert torch.equal(center(kernel, 7, dilation=2), expected)
    assert torch.equal(center(kernel[..., 1:2, 1:2], 3), nn.functional.pad(kernel[..., 1:2, 1:2], [1] * 4))


@pytest.mark.parametrize('groups', [1, 3, 6])
def test_the_identity_kernel_returns_its_input(groups):
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=False)
    kernel = identity_kernel(conv.weight, groups)
    x = torch.randn(1, 6, 5, 5)
    assert torch.equal(nn.functional.conv2d(x, kernel, padding=1, groups=groups), x)
