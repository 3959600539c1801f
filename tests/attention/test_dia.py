"""DIA: one LSTM cell per stage, whose state is passed from block to block."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import agrees, built, classifier, plugin, randomize, randomize_norms, save_network
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.layers import ResLayer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.attention.dia import DIA, DIACell, DIAState
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.stripes import attention_modules

BACKBONES = {
    'bottlenecks': {'type': 'mmasr.ASRResNetCIFAR', 'depth': 83, 'plugins': [plugin('DIA')]},
    'basic blocks': {'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'plugins': [plugin('DIA', 'after_conv2')]},
    'ResNet-18': {
        'type': 'mmasr.ASRResNet',
        'depth': 18,
        'base_channels': 8,
        'plugins': [plugin('DIA', 'after_conv2')],
    },
}
each_backbone = pytest.mark.parametrize('name', BACKBONES)


def build(backbone, **options):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**backbone, **options})


def small(name, **options):
    """Return a backbone with few blocks and random BatchNorm weights and variances, in eval mode."""
    torch.manual_seed(0)
    network = build(BACKBONES[name], **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.eval()
    return network


def test_cell_matches_its_formula():
    """Its gates are small networks, and its output uses a sigmoid instead of the usual tanh."""
    cell = randomize(DIACell(8)).double()
    x, h, c = torch.randn(3, 5, 8, dtype=torch.double)

    def layers(sequence, x):
        hidden = (x @ sequence[0].weight.T + sequence[0].bias).clamp(min=0)
        return hidden @ sequence[2].weight.T + sequence[2].bias

    assert cell.features[0].weight.shape == (2, 8)  # a quarter of the channels
    i, f, g, o = (layers(cell.features, x) + layers(cell.attention, h)).split(8, dim=1)
    expected = f.sigmoid() * c + i.sigmoid() * g.tanh()
    attention, state = cell(x, h, c)
    torch.testing.assert_close(state, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(attention, o.sigmoid() * expected.sigmoid(), rtol=1e-10, atol=1e-10)


def test_state_is_passed_from_block_to_block():
    attention = DIA(8)
    cell = randomize(attention.cell())
    state, h, c = DIAState(cell), torch.zeros(2, 8), torch.zeros(2, 8)
    for _ in range(3):
        x = torch.randn(2, 8, 5, 4)
        h, c = cell(x.mean((2, 3)), h, c)
        torch.testing.assert_close(attention(x, state), x * h[..., None, None])


@each_backbone
def test_network_equals_its_blocks_run_by_hand(name):
    network = small(name)
    found = []
    for module in attention_modules(network).values():
        module.gate.register_forward_hook(lambda *args: found.append(args[2]))
    x = torch.randn(2, 3, 32, 32)
    network(x)
    assert len(found) == len(attention_modules(network)) == sum(isinstance(m, DIA) for m in network.modules())
    stages = [network.get_submodule(layer) for layer in network.res_layers]
    # The input of the first stage.
    y = network.maxpool(network.relu(network.norm1(network.conv1(x))))
    values = iter(found)
    for stage in stages:
        h = c = None
        for block in stage:
            if block is stage.dia:
                continue
            plain = copy.copy(block)
            plain.__class__ = Bottleneck if isinstance(block, Bottleneck) else BasicBlock
            norm = block.norm3 if isinstance(block, Bottleneck) else block.norm2
            seen = []
            handle = norm.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
            residual = y if block.downsample is None else block.downsample(y)
            block(y, DIAState(stage.dia))  # to record the input of the attention
            handle.remove()
            pooled = seen[0].mean((2, 3))
            h = torch.zeros_like(pooled) if h is None else h
            c = torch.zeros_like(pooled) if c is None else c
            h, c = stage.dia(pooled, h, c)
            torch.testing.assert_close(next(values), h)
            y = (seen[0] * h[..., None, None] + residual).relu()
    torch.testing.assert_close(network(x)[-1], y)


@each_backbone
def test_every_parameter_trains_and_copies_compute_the_same(name):
    network = small(name)
    network.train()
    network(torch.randn(2, 3, 32, 32))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    x = torch.randn(1, 3, 32, 32)
    expected = network(x)[-1]
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x)[-1], expected)


def test_threads_do_not_share_state():
    network = small('basic blocks')
    images = torch.randn(8, 1, 3, 32, 32)
    with torch.no_grad():
        expected = [network(x)[-1] for x in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: network(x)[-1], images))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(('data', 'parameters'), [('cifar100', 1.95), ('stl10', 1.92)])
def test_parameter_counts_match_table_1(data, parameters):
    from helpers import ROOT

    config = Config.fromfile(ROOT / f'configs/{data}/resnet164_dia.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == parameters


def test_init_identity_starts_as_the_plain_network():
    attention = {'cfg': {'type': 'mmasr.DIA', 'init_identity': True}, 'position': 'after_conv3'}
    torch.manual_seed(0)
    plain = build({'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 8})
    network = build({'type': 'mmasr.ASRResNet', 'depth': 50, 'base_channels': 8, 'plugins': [attention]})
    plain.eval()
    network.eval()
    assert network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(1, 3, 64, 64)
    for found, expected in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(found, expected)
    network(x)[-1].square().mean().backward()
    assert network.layer4.dia.features[2].weight.grad.any()


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (
            {'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 8, 'plugins': [plugin('DIA')]},
            'DIA received no state',
        ),
        ({**BACKBONES['basic blocks'], 'with_cp': True}, 'leave with_cp out'),
    ],
)
def test_backbones_that_do_not_pass_the_state_on_are_rejected(backbone, message):
    with pytest.raises(ValueError, match=message):
        build(backbone)(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('name', ['bottlenecks', 'basic blocks'])
def test_dia_remains_when_asr_is_folded(tmp_path, name):
    backbone = {**BACKBONES[name], 'asr': {'attention': {'type': 'SE'}}}
    channels = 256 if name == 'bottlenecks' else 64
    network = save_network(tmp_path / 'a.pth', classifier(backbone, channels), randomize)
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    config = Config.fromfile(report.config)
    assert config.model.backbone.type == 'mmasr.ASRResNetCIFAR'
    deployed = built(config, report.checkpoint)
    assert not any(isinstance(module, Host) for module in deployed.modules())
    assert sum(isinstance(module, DIA) for module in deployed.modules()) == (
        27 if name == 'bottlenecks' else 9
    )
    assert agrees(deployed, network, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize('some', [False, True], ids=['all', 'some'])
def test_constants_fold_into_the_preceding_normalization(some):
    network = randomize_norms(mmasr.fold(small('basic blocks')))
    names = list(attention_modules(network))

    def accept(student):
        return not some or isinstance(student.layer3[2].dia, DIA)

    report = mmasr.fold_attention(
        network, list(torch.randn(8, 3, 32, 32).split(2)), tolerance=float('inf'), epochs=0, accept=accept
    )
    assert list(report.modules) == names
    placements = {name: report.modules[name].placement for name in report.removed}
    assert placements == {name: f'{name.replace("dia", "bn2")} before it' for name in report.removed}
    assert (set(report.removed) == set(names)) != some
    # A stage without DIA is a stock stage again and has no cell.
    for number in (1, 2, 3):
        stage = getattr(network, f'layer{number}')
        left = any(isinstance(module, DIA) for module in stage.modules())
        assert (type(stage) is ResLayer) != left
        assert hasattr(stage, 'dia') == left
    assert some == any(isinstance(module, DIA) for module in network.modules())
