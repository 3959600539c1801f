"""Round trip: a folded network gets branches again and continues its training from the same function."""

import copy

import pytest
import timm
import torch
import torchvision
from helpers import classifier, randomize_norms, save_network, small_detector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from timm.models.resnet import BasicBlock
from torch import nn

import mmasr
from mmasr.deploy.reparameterize import reparameterize

#: Name -> spec for attach.
SPECS = {
    'ASR': {'type': 'ASR', 'attention': {'type': 'SE'}},
    **{name: {'type': name} for name in ('OREPA', 'DBB', 'RepVGG', 'QARepVGG', 'MobileOne', 'ACNet')},
}
with_spec = pytest.mark.parametrize('kind', SPECS)


def resnet():
    """Return a narrow ResNet-10."""
    channels = (8, 16, 24, 32)
    return timm.models.resnet.ResNet(BasicBlock, [1] * 4, num_classes=10, stem_width=8, channels=channels)


def train(network, steps=2):
    """Train a network for a few steps, and return it in eval mode."""
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def output(network):
    """Return the output of a network for the same random images each time."""
    return network.eval()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


@with_spec
def test_a_folded_network_continues_from_the_same_function(kind):
    network = mmasr.attach(resnet(), SPECS[kind])
    mmasr.fold(train(network))
    deployed = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = output(network)

    mmasr.attach(network, SPECS[kind], init_identity=True)
    assert torch.equal(output(network), start)
    trained = output(train(network))
    assert not torch.allclose(trained, start, rtol=1e-3)
    mmasr.fold(network)
    torch.testing.assert_close(output(network), trained, rtol=1e-4, atol=1e-4 * trained.abs().max().item())
    assert network.state_dict().keys() == deployed.keys()
    assert {type(module) for module in network.modules()} == {type(module) for module in resnet().modules()}


@pytest.mark.parametrize('kind', ['ASR', 'OREPA', 'MobileOne'])
def test_another_kind_can_follow(kind):
    network = mmasr.attach(resnet(), SPECS['DBB'])
    mmasr.fold(train(network))
    start = output(network)
    mmasr.attach(network, SPECS[kind], init_identity=True)
    assert torch.equal(output(network), start)


def test_several_kinds_can_follow():
    network = mmasr.attach(resnet(), SPECS['OREPA'])
    mmasr.fold(train(network))
    start = output(network)
    mmasr.attach(network, SPECS['DBB'], sites=r'layer4\.\d\.conv\d', init_identity=True)
    mmasr.attach(network, SPECS['OREPA'], init_identity=True)
    mmasr.attach(network, SPECS['ASR'], init_identity=True)
    assert torch.equal(output(network), start)


@pytest.mark.parametrize(
    ('kind', 'exact'), [('ASR', True), ('OREPA', True), ('DBB', False), ('RepVGG', False)], ids=str
)
def test_convolutions_with_a_bias(kind, exact):
    """Branches move the bias into a BatchNorm, which adds it in another order than the convolution."""
    plain = torchvision.models.vgg11_bn(num_classes=10, init_weights=False).features
    randomize_norms(plain)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.bias, -1, 1)
    sites = r'4|11' if kind == 'ASR' else None
    network = mmasr.attach(copy.deepcopy(plain), SPECS[kind], sites, init_identity=True)
    found, start = output(network), output(plain)
    if exact:
        assert torch.equal(found, start)
    torch.testing.assert_close(found, start, rtol=1e-5, atol=1e-5 * start.abs().max().item())


RESNET = {'depth': 18, 'base_channels': 8, 'norm_eval': False}
CONFIGS = {
    'classifier of MMPretrain': lambda **options: classifier(
        {'type': 'mmasr.ASRResNet', **RESNET, 'out_indices': (3,), **options}, 64
    ),
    'detector of MMDetection': lambda **options: small_detector(
        **{'asr': None, 'norm_eval': False, **options}
    ),
}


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('kind', ['ASR', 'OREPA', 'DBB', 'RepVGG'])
def test_deployed_files_continue_with_load_from(tmp_path, kind, name):
    """The runner calls `init_weights` and then loads the file without `strict`, as is done here."""
    options = {'asr': {'attention': {'type': 'SE'}}} if kind == 'ASR' else {'convs': {'type': kind}}
    save_network(tmp_path / 'a.pth', CONFIGS[name](**options), randomize_norms)
    report = reparameterize(tmp_path / 'a.pth')

    deployed = Config.fromfile(report.config)
    stock = built_and_loaded(deployed, report.checkpoint)
    (part,) = options
    config = copy.deepcopy(deployed)
    config.model.backbone.update(type='mmasr.ASRResNet', **{part: {**options[part], 'init_identity': True}})
    network = built_and_loaded(config, report.checkpoint)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(network.backbone(x), stock.backbone(x), strict=True):
            assert torch.equal(found, expected)

    network.train()
    for _ in range(2):
        outputs = network.backbone(torch.randn(4, 3, 64, 64))
        sum(out.square().mean() for out in outputs).backward()
        torch.optim.SGD(network.parameters(), lr=0.01).step()
    (tmp_path / 'again').mkdir()
    content = {'meta': {'cfg': config.pretty_text}, 'state_dict': network.state_dict()}
    torch.save(content, tmp_path / 'again/a.pth')
    again = reparameterize(tmp_path / 'again/a.pth')
    assert max(difference.relative for difference in again.differences) <= 1e-5
    assert Config.fromfile(again.config).model.to_dict() == deployed.model.to_dict()


def built_and_loaded(config, checkpoint):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        network = MODELS.build(copy.deepcopy(config.model))
    network.init_weights()
    load_checkpoint(network, str(checkpoint))
    return network.eval()
