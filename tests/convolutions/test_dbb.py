"""DBB and OfflineOREPA: branches, compared with their formulas, and the convolution that they merge into."""

import copy

import pytest
import torch
import torchvision
from helpers import classifier, randomize, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d
from torch.utils.checkpoint import checkpoint

import mmasr
from mmasr.convolutions.dbb import DBB, OfflineOREPA, _Inner
from mmasr.convolutions.orepa import frequency_prior
from mmasr.deploy.reparameterize import reparameterize

SHAPES = {
    '3 x 3': {},
    'stride': {'stride': 2},
    'groups': {'groups': 2},
    'more than four groups': {'groups': 8},
    '5 x 5': {'kernel_size': 5, 'padding': 2},
    'dilation': {'dilation': 2, 'padding': 2, 'stride': 2},
    '5 x 5, dilation': {'kernel_size': 5, 'dilation': 3, 'padding': 6},
}


def made(kind, inputs=16, outputs=32, **options):
    options = {'kernel_size': 3, 'padding': 1, **options}
    return randomize(kind(inputs, outputs, **options)).double().eval()


def normalized(x, norm):
    """Return the output of a BatchNorm in eval mode for a map, by its formula."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return x * scale.view(1, -1, 1, 1) + (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1)


def bordered(x, norm, width):
    """Pad a map with zeros, then normalize it."""
    return normalized(nn.functional.pad(x, [width] * 4), norm)


def identity(conv, groups):
    own = conv.weight.shape[1]
    return (
        conv.weight + torch.eye(own, dtype=torch.double).repeat(len(conv.weight) // own, 1)[:, :, None, None]
    )


def average(x, size, stride, dilation):
    """Return the average over a window whose pixels are `dilation` apart."""
    height, width = (n - dilation * (size - 1) for n in x.shape[2:])
    shifts = [dilation * i for i in range(size)]
    views = [x[:, :, i : i + height : stride[0], j : j + width : stride[1]] for i in shifts for j in shifts]
    return sum(views) / size**2


def dbb_on_maps(dbb, x):
    """Compute section 3.2 and Fig. 3 of the paper, written out."""
    p, g, s, k, d = dbb.padding, dbb.groups, dbb.stride, dbb.size, dbb.dilation
    found = normalized(
        conv2d(x, dbb.origin.conv.weight, padding=p, stride=s, dilation=d, groups=g), dbb.origin.norm
    )
    inner = dbb.deep.inner
    is_depthwise = dbb.groups == dbb.in_channels == dbb.out_channels
    first = inner.conv.weight if is_depthwise else identity(inner.conv, g)
    y = bordered(conv2d(x, first, groups=g), inner.norm, p)
    found = found + normalized(conv2d(y, dbb.deep.conv.weight, stride=s, dilation=d, groups=g), dbb.deep.norm)
    if is_depthwise:
        return found + normalized(avg_pool2d(x, k, s, p), dbb.average.norm)
    found = found + normalized(conv2d(x, dbb.point.conv.weight, stride=s, groups=g), dbb.point.norm)
    y = bordered(conv2d(x, dbb.average.inner.conv.weight, groups=g), dbb.average.inner.norm, p)
    return found + normalized(average(y, k, s, d), dbb.average.norm)


def orepa_on_maps(module, x):
    """Compute the six branches of OREPA, each as convolutions and a BatchNorm."""
    p, g, s, k, outputs = module.padding, module.groups, module.stride, module.size, module.out_channels
    window = {'stride': s, 'dilation': module.dilation}
    padded = nn.functional.pad(x, [p] * 4)

    def point(layer):
        return conv2d(padded, layer.weight, groups=g)

    prior = frequency_prior(outputs, k)[:, None].double()
    deep = conv2d(
        conv2d(padded, identity(module.deep.inner, g), groups=g), module.deep.conv.weight, groups=g, **window
    )
    maps = {
        'origin': conv2d(padded, module.origin.conv.weight, groups=g, **window),
        'deep': deep,
        'average': average(point(module.average.inner), k, s, module.dilation),
        'prior': conv2d(point(module.prior.inner), prior, groups=outputs, **window),
        'point': conv2d(x, module.point.conv.weight, stride=s, groups=g),
        'separable': conv2d(
            conv2d(padded, module.separable.inner.weight, groups=module.in_channels, **window),
            module.separable.conv.weight,
            groups=g,
        ),
    }
    return sum(normalized(y, module.get_submodule(branch).norm) for branch, y in maps.items())


@pytest.mark.parametrize(('kind', 'on_maps'), [(DBB, dbb_on_maps), (OfflineOREPA, orepa_on_maps)])
@pytest.mark.parametrize('name', SHAPES)
def test_block_is_the_sum_of_its_branches_and_merges(kind, on_maps, name):
    module = made(kind, **SHAPES[name])
    if kind is OfflineOREPA:
        module.init_weights()  # restores the fixed prior
    x = torch.randn(2, 16, 9, 11, dtype=torch.double)
    with torch.no_grad():
        expected = on_maps(module, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)
        merged = module.to_single_layer()
        torch.testing.assert_close(merged(x), expected, rtol=1e-10, atol=1e-10)
    assert type(merged) is nn.Conv2d


@pytest.mark.parametrize(
    ('inputs', 'outputs', 'groups'),
    [(16, 16, 16), (4, 8, 4), (8, 4, 4), (3, 1, 1)],
    ids=['depthwise', 'with a multiplier', 'one output in every group', 'one output'],
)
def test_block_of_as_many_groups_as_channels_merges(inputs, outputs, groups):
    module = made(DBB, inputs, outputs, groups=groups)
    x = torch.randn(2, inputs, 9, 11, dtype=torch.double)
    with torch.no_grad():
        expected = dbb_on_maps(module, x)
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(module.to_single_layer()(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('inputs', 'outputs'), [(6, 8), (8, 6)])
def test_1x1_block_is_the_origin_plus_two_1x1_convolutions(inputs, outputs):
    module = made(OfflineOREPA, inputs, outputs, kernel_size=1, padding=0, stride=2)
    x = torch.randn(2, inputs, 7, 7, dtype=torch.double)
    with torch.no_grad():
        rows = conv2d(conv2d(x, module.deep.inner.weight), module.deep.conv.weight, stride=2)
        expected = normalized(conv2d(x, module.origin.conv.weight, stride=2), module.origin.norm)
        expected = expected + normalized(rows, module.deep.norm)
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(module.to_single_layer()(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('kind', [DBB, OfflineOREPA])
def test_every_parameter_trains(kind):
    module = kind(4, 8)
    module(torch.randn(2, 4, 6, 6)).square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for name, p in module.named_parameters() if 'fixed' not in name)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kernel_size': 2}, 'odd square kernel'),
        ({'kernel_size': (1, 3)}, 'odd square kernel'),
        ({'padding': 0}, 'a padding of 1'),
        ({'dilation': 2}, 'a padding of 2'),
        ({'dilation': (1, 2)}, 'needs one dilation'),
        ({'kernel_size': 1, 'padding': 0}, '3 x 3 or more, not 1 x 1'),
    ],
)
def test_other_convolutions_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        DBB(4, 8, **{'kernel_size': 3, 'padding': 1, **options})


@pytest.mark.parametrize('kind', ['DBB', 'OfflineOREPA', 'ACNet'])
@pytest.mark.parametrize('training', [False, True])
def test_init_identity_keeps_a_pretrained_network(kind, training):
    stock = torchvision.models.resnet18()
    network = copy.deepcopy(stock)
    mmasr.attach(network, {'type': kind, 'init_identity': True})
    assert network.load_state_dict(stock.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        # In training, a BatchNorm cancels the BatchNorm before it, up to eps of the variance.
        torch.testing.assert_close(network.train(training)(x), stock.train(training)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kind', ['DBB', 'OfflineOREPA'])
@pytest.mark.parametrize('asr', [None, {'attention': {'type': 'SE'}}], ids=['alone', 'with ASR'])
def test_block_trains_merges_and_deploys(tmp_path, kind, asr):
    backbone = {
        'type': 'mmasr.ASRResNet',
        'depth': 18,
        'base_channels': 8,
        'out_indices': (3,),
        'norm_eval': False,
    }
    config = classifier({**backbone, 'convs': {'type': kind}, 'asr': asr}, 64)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(config.model)
    trained.init_weights()
    blocks = [module for module in trained.modules() if isinstance(module, DBB | OfflineOREPA)]
    assert len(blocks) == 16
    trained.train()
    for _ in range(2):
        trained(torch.randn(4, 3, 64, 64)).square().mean().backward()
    torch.optim.SGD(trained.parameters(), lr=0.01).step()
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': trained.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    assert set(report.merged.values()) == {kind}
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'convs' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


@pytest.mark.parametrize('kind', ['DBB', 'OfflineOREPA', 'ACNet'])
def test_sites_in_an_untrusted_checkpoint_come_from_its_weights(tmp_path, kind):
    """A pattern in an embedded config is not evaluated."""
    convs = {'type': kind, 'sites': r'layer2\.\d\.conv1'}
    config = classifier(
        {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (3,), 'convs': convs}, 64
    )
    save_network(tmp_path / 'a.pth', config)
    report = reparameterize(tmp_path / 'a.pth')
    assert report.merged == dict.fromkeys(('backbone.layer2.0.conv1', 'backbone.layer2.1.conv1'), kind)


def test_initial_values_with_init_identity():
    block = DBB(4, 8, init_identity=True)
    assert (block.origin.norm.running_var + block.origin.norm.eps == 1).all()
    assert (block.origin.norm.weight == 1).all()
    assert not block.point.norm.weight.any()
    assert not block.deep.norm.weight.any()
    assert not block.average.norm.weight.any()


@pytest.mark.parametrize('kind', ['DBB', 'OfflineOREPA', 'OREPA'])
def test_sync_batch_norm_keeps_the_names_and_merges(kind):
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    network = randomize(mmasr.attach(network, {'type': kind})).eval()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    assert synchronized.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(synchronized(x), expected)  # in eval mode it is a BatchNorm, even on a CPU
        folded = mmasr.fold(synchronized)
        assert type(folded[0]) is nn.Conv2d
        torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('use_reentrant', [False, True])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_gradients_are_the_same_under_activation_checkpointing(use_reentrant, momentum):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)) for _ in range(2)]
    network = mmasr.attach(nn.Sequential(*layers), {'type': 'DBB'})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    x, target = torch.randn(2, 8, 8, 8, requires_grad=True), torch.rand(2, 8, 8, 8)

    def gradients(model, run):
        (run(model, x).square() * target).mean().backward()
        return [p.grad for p in model.parameters()], [m.num_batches_tracked for m in inner_norms(model)]

    def again(model, x):
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=use_reentrant)
        return x

    def inner_norms(model):
        return [m.norm for m in model.modules() if isinstance(m, _Inner)]

    expected, counts = gradients(copy.deepcopy(network), lambda model, x: model(x))
    found, found_counts = gradients(network, again)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert found_counts == counts
