"""X-volution: its branches, compared with their formulas, and the dynamic convolution that it merges into."""

import copy
import itertools
import math

import pytest
import torch
import torchvision
from helpers import agrees, built, classifier, randomize, save_network
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, unfold
from versions import FULL_GRAPH

import mmasr
from mmasr.convolutions.dynamic import DynamicConv
from mmasr.convolutions.xvolution import BRANCHES, XVolution
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

WINDOWS = {
    '3 x 3': {},
    'stride': {'stride': 2},
    'stride of rows': {'stride': (3, 1)},
    'dilation': {'dilation': 2, 'padding': 2},
    'groups': {'groups': 2},
    'depthwise': {'groups': 8, 'out_channels': 8},
    'more channels': {'out_channels': 12},
    '5 x 5': {'kernel_size': 5, 'padding': 2},
    '1 x 3': {'kernel_size': (1, 3), 'padding': (0, 1)},
}
#: Odd and small sizes, down to a single position with only the border around it.
SIZES = [(5, 4), (2, 7), (1, 1)]
each_branch = pytest.mark.parametrize('branch', BRANCHES)
each_window = pytest.mark.parametrize('window', WINDOWS)


def made(branch='pssa', **options):
    options = {'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, 'padding': 1, **options}
    return randomize(XVolution(branch=branch, **options)).double().eval()


def normalized(x, norm):
    """Return the output of a BatchNorm in eval mode for the channels of one position, by its formula."""
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def linear(conv, x):
    """Apply a 1 x 1 convolution to the channels of one position."""
    return torch.cat(
        [
            w[:, :, 0, 0] @ part
            for w, part in zip(conv.weight.chunk(conv.groups), x.chunk(conv.groups), strict=True)
        ]
    )


def neighbors(branch, x, i, j):
    """Return an output's neighbors inside the map, as offsets and positions, and its own position."""
    (p, q), (a, b) = ((s * n for s, n in zip(branch.stride, (i, j), strict=True)), branch.size)
    found = []
    for u, (du, dv) in enumerate(itertools.product(range(a), range(b))):
        y, z = p + (du - a // 2) * branch.dilation[0], q + (dv - b // 2) * branch.dilation[1]
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            found.append((u, y, z))
    return found, (p, q)


def pssa(branch, x, i, j):
    """Compute our reading of the paper: W^v times the sum of a_u times the map times the map shifted by u."""
    found, (p, q) = neighbors(branch, x, i, j)
    a = branch.shift.weight.flatten(1)
    return linear(branch.value, sum(a[:, u] * x[:, p, q] * x[:, y, z] for u, y, z in found))


def attention(branch, x, i, j):
    """Compute softmax attention over the neighbors inside the map, head by head."""
    found, (p, q) = neighbors(branch, x, i, j)
    query = linear(branch.query, x[:, p, q]).chunk(branch.heads)
    keys = [linear(branch.key, x[:, y, z]).chunk(branch.heads) for _, y, z in found]
    values = [linear(branch.value, x[:, y, z]).chunk(branch.heads) for _, y, z in found]
    heads = []
    for h in range(branch.heads):
        logits = torch.stack([query[h] @ key[h] / math.sqrt(len(query[h])) for key in keys])
        weights = logits.exp() / logits.exp().sum()
        heads.append(sum(weight * value[h] for weight, value in zip(weights, values, strict=True)))
    return torch.cat(heads)


def involution(branch, x, i, j):
    """Compute a kernel per head from the channels at the position, or from their average over the stride."""
    found, (p, q) = neighbors(branch, x, i, j)
    seen = x[:, p : p + branch.stride[0], q : q + branch.stride[1]].mean((1, 2))
    hidden = normalized(linear(branch.reduce.conv, seen), branch.reduce.norm).relu()
    kernel = (linear(branch.span, hidden) + branch.span.bias).view(branch.heads, -1)
    each = branch.out_channels // branch.heads
    result = 0
    for u, y, z in found:
        value = linear(branch.value, x[:, y, z]) if isinstance(branch.value, nn.Conv2d) else x[:, y, z]
        result = result + kernel[:, u].repeat_interleave(each) * value
    return result


FORMULAS = {'pssa': pssa, 'sa': attention, 'involution': involution}


def by_loops(layer, branch, x):
    """Compute the layer in eval mode, position by position."""
    dynamic = layer.dynamic.branch
    rows, columns = ((n - 1) // s + 1 for n, s in zip(x.shape[2:], dynamic.stride, strict=True))
    maps = []
    for image in x:
        y = [FORMULAS[branch](dynamic, image, i, j) for i in range(rows) for j in range(columns)]
        maps.append(
            torch.stack([normalized(position, layer.dynamic.norm) for position in y], 1).view(
                -1, rows, columns
            )
        )
    result = torch.stack(maps)
    if layer.static is None:
        return result
    static = nn.functional.conv2d(
        *(
            x,
            layer.static.conv.weight,
            None,
            dynamic.stride,
            dynamic.padding,
            dynamic.dilation,
            dynamic.groups,
        )
    )
    return result + normalized(static.movedim(1, -1), layer.static.norm).movedim(-1, 1)


@each_branch
@each_window
def test_output_and_gradients_match_the_formula(branch, window):
    layer = made(branch, **WINDOWS[window])
    for size in SIZES:
        x = torch.randn(2, 8, *size, dtype=torch.double, requires_grad=True)
        outputs = layer(x), by_loops(layer, branch, x)
        direction = torch.randn_like(outputs[0])
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
        of = [x, *layer.parameters()]
        for found, expected in zip(
            *(torch.autograd.grad((y * direction).sum(), of) for y in outputs), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (1, 2)])
def test_self_attention_equals_masked_attention_of_torch(stride, dilation):
    layer = made('sa', stride=stride, dilation=dilation, padding=dilation).dynamic.branch
    x = torch.randn(2, 8, 7, 6, dtype=torch.double)
    query = layer.query(x)
    places = torch.cartesian_prod(torch.arange(7), torch.arange(6))
    centers = places.view(7, 6, 2)[::stride, ::stride].reshape(-1, 2)
    distance = (centers[:, None] - places).abs()
    mask = ((distance <= dilation) & (distance % dilation == 0)).all(-1)
    heads = [y.flatten(2).unflatten(1, (8, -1)).mT for y in (query, layer.key(x), layer.value(x))]
    expected = scaled_dot_product_attention(*heads, mask).mT.flatten(1, 2).view_as(query)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@each_branch
@each_window
def test_merges_into_a_dynamic_convolution(branch, window):
    layer = made(branch, **WINDOWS[window])
    for convolution in (True, False):
        layer.static = layer.static if convolution else None
        merged = layer.to_single_layer()
        assert type(merged) is DynamicConv
        assert not list(merged.buffers())  # no running statistics remain
        assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
        for size in SIZES:
            x = torch.randn(2, 8, *size, dtype=torch.double)
            with torch.no_grad():
                torch.testing.assert_close(merged(x), layer(x), rtol=1e-10, atol=1e-10)


@each_branch
@each_window
def test_dense_kernel_computes_the_same_as_the_layer(branch, window):
    """y = Σ_u (w^A_u + w^c_u) x_{p+u} + b, where only w^A depends on the image."""
    layer = made(branch, **WINDOWS[window])
    merged, dynamic = layer.to_single_layer(), layer.dynamic.branch
    x = torch.randn(2, 8, 5, 4, dtype=torch.double)
    kernel, y = merged.kernel(x), merged(x)
    patches = unfold(x, dynamic.size, dynamic.dilation, dynamic.padding, dynamic.stride)
    patches = patches.view(2, 8, -1, *y.shape[2:])
    found = torch.einsum('nocuhw,ncuhw->nohw', kernel, patches) + merged.bias.view(-1, 1, 1)
    torch.testing.assert_close(found, y, rtol=1e-10, atol=1e-10)
    static = kernel - merged.dynamic.kernel(x)
    torch.testing.assert_close(static, static[:1, ..., :1, :1].expand_as(static))
    assert not torch.allclose(kernel, merged.kernel(2 * x))


@each_branch
def test_merged_and_trained_layers_agree_in_float32_at_five_sizes(branch):
    layer = made(branch, in_channels=16, out_channels=16).float()
    merged = layer.to_single_layer()
    for size in (1, 7, 14, 28, 33):
        for scale in (0.1, 1, 10):
            assert agrees(merged, layer, scale * torch.randn(2, 16, size, size))


@each_branch
def test_layer_with_a_second_branch_of_zero_merges_into_a_stock_convolution(branch):
    layer = made(branch, groups=2)
    nn.init.zeros_(layer.dynamic.norm.weight)  # β may have any value
    merged = layer.to_single_layer()
    assert type(merged) is nn.Conv2d
    x = torch.randn(2, 8, 5, 4, dtype=torch.double)
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-10, atol=1e-10)
    layer.static = None
    assert type(layer.to_single_layer()) is DynamicConv  # no stock layer ignores its input


def test_default_sites_are_the_3x3_convolutions_of_stage_3():
    network = mmasr.attach(torchvision.models.resnet50(), {'type': 'XVolution'})
    names = [name for name, module in network.named_modules() if isinstance(module, XVolution)]
    assert names == [f'layer3.{i}.conv2' for i in range(6)]
    network = mmasr.attach(torchvision.models.resnet50(), {'type': 'XVolution'}, sites=r'layer4\.\d+\.conv2')
    assert sum(isinstance(module, XVolution) for module in network.modules()) == 3


@each_branch
@pytest.mark.parametrize('training', [False, True])
def test_init_identity_keeps_a_pretrained_network(branch, training):
    stock = torchvision.models.resnet18()
    network = copy.deepcopy(stock)
    mmasr.attach(network, {'type': 'XVolution', 'branch': branch, 'init_identity': True})
    assert network.load_state_dict(stock.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        # In training, a BatchNorm cancels the BatchNorm before it, up to eps of the variance.
        torch.testing.assert_close(network.train(training)(x), stock.train(training)(x), rtol=1e-3, atol=1e-3)
    network.train()(x).square().mean().backward()
    assert network.layer3[0].conv2.dynamic.norm.weight.grad.any()  # so γ leaves 0


def test_weight_of_the_plain_convolution_goes_to_the_static_branch():
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    network = mmasr.attach(nn.Sequential(copy.deepcopy(conv)), {'type': 'XVolution'}, sites=['0'])
    assert torch.equal(network[0].static.conv.weight, conv.weight)
    other = {'0.weight': torch.randn(8, 4, 3, 3)}
    assert network.load_state_dict(dict(other), strict=False).unexpected_keys == []
    assert torch.equal(network[0].static.conv.weight, other['0.weight'])


@each_branch
def test_every_parameter_trains(branch):
    for convolution in (True, False):
        layer = XVolution(8, 16, branch=branch, convolution=convolution)
        layer(torch.randn(2, 8, 6, 6)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@each_branch
def test_init_weights_of_openmmlab_restores_the_initial_values(branch):
    backbone = {
        'type': 'mmasr.ASRResNet',
        'depth': 18,
        'base_channels': 8,
        'convs': {'type': 'XVolution', 'branch': branch},
    }
    network = MODELS.build(backbone)
    randomize(network)
    network.init_weights()
    layer = network.layer3[1].conv2
    assert layer.dynamic.norm.weight.eq(1).all()
    assert layer.static.norm.weight.eq(1).all()
    for conv in layer.dynamic.branch.modules():
        if isinstance(conv, nn.Conv2d):  # uniform, as torch initializes its convolutions
            assert conv.weight.abs().max() <= conv.weight[0].numel() ** -0.5


@each_branch
def test_autocast_agrees_with_float32(branch):
    layer = made(branch).float().train()
    x = torch.randn(4, 8, 9, 9)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = layer(x)
    # bfloat16 has 8 bits, and the BatchNorms normalize all values to the same scale.
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    found.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@each_branch
def test_ema_shares_no_memory(branch):
    network = mmasr.attach(
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), {'type': 'XVolution', 'branch': branch}, sites=['0']
    )
    average = ExponentialMovingAverage(network, momentum=0.5)
    start = copy.deepcopy(network.state_dict())
    randomize(network)
    average.update_parameters(network)
    average.update_parameters(network)  # the first update copies
    for name, value in average.module.named_parameters():
        assert not torch.equal(value, start[name]), name
        assert value.data_ptr() != network.get_parameter(name).data_ptr()


@each_branch
@pytest.mark.parametrize('form', ['trained', 'deployed'])
def test_compiles_into_one_graph(branch, form):
    layer = XVolution(8, 8, branch=branch)
    layer = layer if form == 'trained' else layer.to_single_layer()
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=FULL_GRAPH)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@each_branch
def test_sync_batch_norm_keeps_the_names_and_merges(branch):
    layer = made(branch)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert synchronized.state_dict().keys() == layer.state_dict().keys()
    x = torch.randn(2, 8, 6, 6, dtype=torch.double)
    torch.testing.assert_close(synchronized.to_single_layer()(x), layer(x), rtol=1e-10, atol=1e-10)


def test_asr_scales_both_branches():
    layer = mmasr.attach(
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), {'type': 'XVolution'}, sites=['0']
    ).eval()
    x = torch.randn(2, 8, 6, 6)
    plain = layer(x)
    mmasr.attach(layer, {'type': 'SE'}, sites=['0'])
    assert isinstance(layer[0], Host)
    scale = layer[0].asr.scale().view(-1, 1, 1)
    torch.testing.assert_close(layer(x), plain * scale)
    torch.testing.assert_close(mmasr.fold(layer)(x), plain * scale)


@pytest.mark.parametrize(
    ('conv', 'options', 'message'),
    [
        ({}, {'branch': 'nope'}, "0: XVolution has no branch 'nope'; it has pssa, sa, involution"),
        (
            {},
            {'convolution': False, 'init_identity': True},
            '0: XVolution without its convolution cannot start as the plain convolution',
        ),
        ({'kernel_size': 2}, {}, '0: XVolution replaces a convolution with an odd kernel'),
        ({'padding': 0}, {}, '0: XVolution needs a padding of'),
        ({'padding_mode': 'reflect'}, {}, "0 .*can't become XVolution"),
    ],
)
def test_unsupported_layers_and_options_are_rejected_by_name(conv, options, message):
    network = nn.Sequential(nn.Conv2d(8, 8, **{'kernel_size': 3, 'padding': 1, **conv}))
    with pytest.raises(ValueError, match=message) as caught:
        mmasr.attach(network, {'type': 'XVolution', **options}, sites=['0'])
    assert '\n' not in str(caught.value)
    assert type(network[0]) is nn.Conv2d


def test_error_for_a_network_without_stage_3_asks_for_sites():
    with pytest.raises(ValueError, match=r'has no 3 x 3 convolution in a module named layer3.*pass sites='):
        mmasr.attach(nn.Sequential(nn.Conv2d(4, 4, 3)), {'type': 'XVolution'})


BACKBONE = {
    'type': 'mmasr.ASRResNet',
    'depth': 18,
    'base_channels': 8,
    'out_indices': (3,),
    'norm_eval': False,
}
STAGE_3 = [f'layer3.{block}.conv{conv}' for block in (0, 1) for conv in (1, 2)]


def trained(path, convs, without=(), wrapped=False, **options):
    """Save a network with random values, so that any mistake in folding shows.

    The second branches of the layers `without` output 0. The others output small values, as PSSA squares its
    inputs, and in several layers the values would become infinite.
    """

    def prepare(network):
        randomize(network)
        for module in network.modules():
            if isinstance(module, XVolution):
                module.dynamic.norm.weight.data.mul_(0.01)
        for name in without:
            nn.init.zeros_(network.get_submodule(f'backbone.{name}').dynamic.norm.weight)
        return network

    convs = {'type': 'XVolution', **convs}
    backbone = {**BACKBONE, 'convs': convs, **options}
    if wrapped:
        inner = {**BACKBONE, 'type': 'mmdet.ResNet'}
        backbone = {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'convs': convs, **options}
    return save_network(path, classifier(backbone, 64), prepare)


@each_branch
@pytest.mark.parametrize(
    'options',
    [{}, {'convs': {'convolution': False}}, {'asr': {'attention': {'type': 'SE'}}}, {'wrapped': True}],
    ids=['alone', 'no convolution', 'with ASR', 'wrapped'],
)
def test_deploys_as_dynamic_convolutions_of_mmasr(tmp_path, branch, options):
    options = {**options, 'convs': {'branch': branch, **options.get('convs', {})}}
    network = trained(tmp_path / 'a.pth', **options)
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    # A kernel that depends on its input is compared on inputs of several sizes and scales.
    assert [d.output for d in report.differences] == [
        f'output, {s} px, × {n}' for s, n in ((224, 1), (160, 0.5), (288, 2))
    ]
    assert report.ours == dict.fromkeys((f'backbone.{name}' for name in STAGE_3), 'DynamicConv')
    config = Config.fromfile(report.config)
    assert config.custom_imports.imports == ['mmasr']
    assert config.model.backbone.convs.deploy
    assert config.model.backbone.convs.sites == STAGE_3
    deployed = built(config, report.checkpoint)
    assert not any(isinstance(module, XVolution | Host) for module in deployed.modules())
    assert not any(name.endswith('running_mean') and '.dynamic' in name for name in deployed.state_dict())
    for size in (32, 75):
        assert agrees(deployed, network, torch.randn(2, 3, size, size))


@pytest.mark.parametrize('wrapped', [False, True])
def test_layers_with_a_second_branch_of_zero_deploy_as_stock_layers(tmp_path, wrapped):
    convs = {'init_identity': True, 'sites': r'layer3\.\d+\.conv\d'}
    network = trained(tmp_path / 'a.pth', convs, STAGE_3[1:], wrapped)
    report = reparameterize(tmp_path / 'a.pth')
    assert report.ours == {'backbone.layer3.0.conv1': 'DynamicConv'}
    config = Config.fromfile(report.config)
    assert config.model.backbone.convs == {'type': 'XVolution', 'deploy': True, 'sites': STAGE_3[:1]}
    assert agrees(built(config, report.checkpoint), network, torch.randn(2, 3, 64, 64))

    trained(tmp_path / 'b.pth', convs, STAGE_3, wrapped)
    report = reparameterize(tmp_path / 'b.pth')
    assert not report.ours
    config = Config.fromfile(report.config)
    assert config.model.backbone.type == 'mmdet.ResNet'
    assert 'custom_imports' not in config
    # The bias was fused into the BatchNorm that follows.
    assert built(config, report.checkpoint).backbone.layer3[0].conv1.bias is None


def test_attention_remains_with_dynamic_convolutions(tmp_path):
    """The attention is a plugin of basic blocks, which only mmasr's backbone supports."""
    plugins = [{'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv2'}]
    network = trained(tmp_path / 'a.pth', {}, plugins=plugins)
    report = reparameterize(tmp_path / 'a.pth')
    config = Config.fromfile(report.config)
    assert config.model.backbone.convs.sites == STAGE_3
    assert agrees(built(config, report.checkpoint), network, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(('size', 'deviation'), [(160, 0.5), (288, 2)])
def test_difference_at_another_size_or_scale_is_detected(tmp_path, monkeypatch, size, deviation):
    forward = DynamicConv.forward

    def wrong(self, x):
        y = forward(self, x)
        return 1.1 * y if -(-size // 16) in x.shape else y  # the stride of stage 3 is 16

    trained(tmp_path / 'a.pth', {'branch': 'involution'})
    # Another check notices it first.
    monkeypatch.setattr('mmasr.core.verification.TrainedLayers.check_layers', lambda *_: None)
    monkeypatch.setattr(DynamicConv, 'forward', wrong)
    with pytest.raises(
        InputError, match=f'differs from the trained network: output, {size} px, × {deviation} by'
    ):
        reparameterize(tmp_path / 'a.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
