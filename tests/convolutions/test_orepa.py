"""OREPA: the squeezed kernel, compared with its branches written out as convolutions on feature maps."""

import copy
import math

import pytest
import torch
import torchvision
from helpers import classifier, randomize
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.functional import conv2d, pad
from versions import FULL_GRAPH

import mmasr
from mmasr.convolutions.orepa import OREPA, OREPA1x1, OREPAKxK, OREPALargeKernel, frequency_prior
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize


def orepa(conv, **options):
    """Attach OREPA to a convolution, in double precision, with random parameters (none is 0 or 1)."""
    conv = mmasr.attach(conv, {'type': 'OREPA', **options}, '').double()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
    return conv


def scaled(x, scale):
    return x * scale.view(1, -1, 1, 1)


def on_maps(conv, x):
    """Compute the branches of an OREPAKxK, each as convolutions on the feature map, and sum them."""
    branches, groups, size = conv.orepa, conv.groups, conv.kernel_size[0]
    options = {'stride': conv.stride, 'dilation': conv.dilation, 'groups': groups}
    padded = pad(x, [conv.padding[0]] * 4)  # a 1 x 1 convolution without bias maps zeros to zeros
    inputs, outputs = conv.in_channels, conv.out_channels
    own = inputs // groups

    # Id + A, then k x k.
    inner = branches.inner + torch.eye(own).repeat(branches.inner.shape[0] // own, 1)
    wide = conv2d(padded, inner[:, :, None, None], groups=groups)
    outer = branches.outer.view(outputs, size, size, -1).permute(0, 3, 1, 2)
    # 1 x 1, then average, frequency prior or center: convolutions of each channel with a fixed kernel.
    fixed = [torch.full((outputs, size, size), 1 / size**2), frequency_prior(outputs, size)]
    if len(branches.points) == 3:
        fixed.append(pad(torch.ones(outputs, 1, 1), [size // 2] * 4))
    points = [
        conv2d(
            conv2d(padded, point[:, :, None, None], groups=groups),
            kernel[:, None].double(),
            **{**options, 'groups': outputs},
        )
        for point, kernel in zip(branches.points, fixed, strict=True)
    ]
    # Depthwise, then 1 x 1.
    deep = conv2d(padded, branches.depthwise.view(-1, 1, size, size), **{**options, 'groups': inputs})
    pointwise = torch.cat([group.T for group in branches.pointwise.chunk(groups)])
    separable = conv2d(deep, pointwise[:, :, None, None], groups=groups)
    maps = [conv2d(padded, conv.weight, **options), conv2d(wide, outer, **options), *points, separable]
    found = sum(scaled(y, s) for y, s in zip(maps, branches.scale, strict=True))
    return found if conv.bias is None else found + conv.bias.view(1, -1, 1, 1)


SQUARES = {
    '3 x 3': {},
    'bias': {'bias': True},
    'stride': {'stride': 2},
    'dilation': {'dilation': 2, 'padding': 2},
    'no padding': {'padding': 0},
    'groups': {'groups': 2},
    'more than four groups': {'groups': 8},
    'depthwise': {'groups': 16},
    '5 x 5': {'kernel_size': 5, 'padding': 2},
}


def compare(conv, expected_of):
    """Compare the output and all gradients (input, parameters) with another implementation, to 1e-10."""
    x = torch.randn(2, conv.in_channels, 9, 10, dtype=torch.double, requires_grad=True)
    names, parameters = zip(*conv.named_parameters(), strict=True)
    outputs = conv(x), expected_of(conv, x)
    direction = torch.randn_like(outputs[0])
    found, expected = (torch.autograd.grad((y * direction).sum(), [x, *parameters]) for y in outputs)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for name, a, b in zip(['input', *names], found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('name', SQUARES)
def test_kxk_kernel_is_the_sum_of_its_branches(name):
    options = {'kernel_size': 3, 'padding': 1, 'bias': False, **SQUARES[name]}
    compare(orepa(nn.Conv2d(16, 32, **options)), on_maps)


@pytest.mark.parametrize(('inputs', 'outputs'), [(6, 8), (8, 6), (6, 6)])
@pytest.mark.parametrize('stride', [1, 2])
def test_1x1_kernel_is_the_origin_plus_two_1x1_convolutions(inputs, outputs, stride):
    def expected(conv, x):
        first, second = conv.orepa.inner[:, :, None, None], conv.orepa.outer[:, 0, :, None, None]
        rows = conv2d(conv2d(x, first), second, stride=stride)
        return scaled(conv2d(x, conv.weight, stride=stride), conv.orepa.scale[0]) + scaled(
            rows, conv.orepa.scale[1]
        )

    compare(orepa(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)), expected)


def test_large_kernel_is_composed_of_3x3_kernels_without_flipping():
    def expected(conv, x):
        first, *others = (s.kernel(o) for o, s in zip(conv.orepa.origins, conv.orepa.branches, strict=True))
        kernel = first.transpose(0, 1)
        for other in others:
            larger = torch.zeros(
                *kernel.shape[:1], other.shape[0], *(n + 2 for n in kernel.shape[2:]), dtype=torch.double
            )
            for i in range(larger.shape[2]):
                for j in range(larger.shape[3]):
                    window = pad(kernel, [2] * 4)[:, :, i : i + 3, j : j + 3]
                    larger[:, :, i, j] = torch.einsum('cohw,pohw->cp', window, other)
            kernel = larger
        maps = (
            conv2d(x, conv.weight, stride=2, padding=3),
            conv2d(x, kernel.transpose(0, 1), stride=2, padding=3),
        )
        return sum(scaled(y, s) for y, s in zip(maps, conv.orepa.scale, strict=True))

    conv = orepa(nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False))
    assert len(conv.orepa.branches) == 3
    compare(conv, expected)


@pytest.mark.parametrize('channels', [6, 1280])
def test_frequency_prior_matches_its_formula(channels):
    prior, half = frequency_prior(channels, 3), channels // 2
    for o in range(channels):
        for h in range(3):
            for w in range(3):
                value = (h + 0.5) * (o + 1) if o < half else (w + 0.5) * (o + 1 - half)
                assert prior[o, h, w] == pytest.approx(math.cos(math.pi * value / 3), abs=1e-6)


def kaiming_bound(fan_in, a):
    return math.sqrt(6 / ((1 + a**2) * fan_in))


def uniform(tensor, bound):
    """Check by maximum and standard deviation that values (1000 or more) are uniform in [-bound, bound]."""
    tensor = tensor.detach()
    return tensor.abs().max() <= bound and tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize('groups', [1, 8])
def test_initial_values_of_a_kxk_kernel(groups):
    conv = mmasr.attach(nn.Conv2d(64, 128, 3, groups=groups), {'type': 'OREPA'}, '')
    branches, own, twice = conv.orepa, 64 // groups, 2 if groups > 4 else 1
    assert [row.unique().tolist() for row in branches.scale] == [[0.25], [0.5], [0.25], [0.0], [1.0], [0.5]]
    assert branches.inner.shape == (64 * twice, own)
    assert not branches.inner.any()
    assert uniform(conv.weight, kaiming_bound(9 * own, 0))
    assert uniform(branches.outer, kaiming_bound(9 * own * twice, 0))
    assert all(uniform(point, kaiming_bound(own, 0)) for point in branches.points)
    assert uniform(branches.depthwise, kaiming_bound(9, 0))
    assert uniform(branches.pointwise, kaiming_bound(8 * own, 0))


@pytest.mark.parametrize(('inputs', 'outputs'), [(32, 64), (64, 32), (64, 64)])
def test_initial_values_of_a_1x1_kernel(inputs, outputs):
    conv = mmasr.attach(nn.Conv2d(inputs, outputs, 1), {'type': 'OREPA'}, '')
    branches = conv.orepa
    assert [row.unique().tolist() for row in branches.scale] == [[1.0], [0.5]]
    assert uniform(conv.weight, kaiming_bound(inputs, 1))
    eye, other = (
        (branches.inner, branches.outer) if outputs > inputs else (branches.outer[:, 0], branches.inner)
    )
    assert torch.equal(eye, torch.eye(len(eye)))
    assert uniform(other, kaiming_bound(inputs, 1))


def test_deep_stem_starts_like_the_authors_stem():
    conv = mmasr.attach(nn.Conv2d(3, 64, 7), {'type': 'OREPA'}, '')
    assert [row.unique().tolist() for row in conv.orepa.scale] == [[0.0], [1.0]]
    assert [tuple(origin.shape) for origin in conv.orepa.origins] == [
        (64, 3, 3, 3),
        (64, 64, 3, 3),
        (64, 64, 3, 3),
    ]
    assert all(uniform(origin, kaiming_bound(9 * origin.shape[1], 0)) for origin in conv.orepa.origins)


@pytest.mark.parametrize(
    'make', [torchvision.models.resnet18, torchvision.models.resnet50, torchvision.models.resnext50_32x4d]
)
def test_init_identity_keeps_a_pretrained_network_and_all_branches_learn(make):
    stock = make().eval()
    network = mmasr.attach(copy.deepcopy(stock), {'type': 'OREPA', 'init_identity': True})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(x), stock(x))
    network.train()(x).square().mean().backward()
    assert all(
        host.reparameterization().scale.grad.abs().sum(1).all()
        for host in network.modules()
        if isinstance(host, Host)
    )


@pytest.mark.parametrize(
    'make', [torchvision.models.resnet18, torchvision.models.resnext50_32x4d, torchvision.models.vgg11_bn]
)
def test_folding_writes_the_squeezed_kernel_into_the_stock_network(make):
    stock = make().eval()
    network = mmasr.attach(copy.deepcopy(stock), {'type': 'OREPA'})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        mmasr.fold(network)
        stock.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(stock(x), expected)
    assert [type(module) for module in network.modules()] == [type(module) for module in stock.modules()]


def sites(network):
    mmasr.attach(network, {'type': 'OREPA'})
    return {name: type(module.orepa) for name, module in network.named_modules() if isinstance(module, Host)}


def test_default_sites_are_those_of_the_authors():
    found = sites(torchvision.models.resnet18())
    assert found.pop('conv1') is OREPALargeKernel
    assert list(found) == [f'layer{s}.{b}.conv{c}' for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)]
    assert set(found.values()) == {OREPAKxK}
    found = sites(ResNet(depth=50, base_channels=8))
    assert len(found) == 53
    assert found['layer1.0.downsample.0'] is OREPA1x1


def test_depthwise_convolutions_and_attention_are_not_sites():
    network = torchvision.models.mobilenet_v3_small()
    assert all(network.get_submodule(name).groups == 1 for name in sites(network))
    assert not any('.fc' in name for name in sites(torchvision.models.mobilenet_v3_small()))


@pytest.mark.parametrize('name', ['ultralytics.DFL', 'segmentation_models_pytorch.SEModule'])
def test_attention_and_fixed_sums_of_other_libraries_are_not_sites(name):
    package, kind = name.split('.')
    inside = type(kind, (nn.Sequential,), {'__module__': f'{package}.nn'})(nn.Conv2d(4, 4, 1))
    assert list(sites(nn.Sequential(nn.Conv2d(3, 4, 1), inside))) == ['0']


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (nn.Conv2d(3, 4, 2), 'its kernel of 2 x 2 is not odd and square'),
        (nn.Conv2d(3, 4, (1, 3)), 'its kernel of 1 x 3 is not odd and square'),
        (nn.ConvTranspose2d(3, 4, 3), r'0 \(ConvTranspose2d\)'),
        (nn.Conv1d(3, 4, 3), r'0 \(Conv1d\)'),
        (nn.Conv2d(3, 4, 3, padding_mode='reflect'), 'not an nn.Conv2d with zero padding'),
        (
            nn.Conv2d(4, 4, 1, groups=2),
            'it has groups and a kernel of 1 x 1; with groups the kernel must be 3 x 3 or 5 x 5',
        ),
        (
            nn.Conv2d(4, 4, 7, groups=2),
            'it has groups and a kernel of 7 x 7; with groups the kernel must be 3 x 3 or 5 x 5',
        ),
        (nn.BatchNorm2d(3), r'0 \(BatchNorm2d\)'),
        (
            mmasr.attach(nn.Conv2d(3, 4, 3), {'type': 'OREPA'}, ''),
            r'^0 \(HostConv2d\) already has an OREPA',
        ),
        (mmasr.attach(nn.Conv2d(3, 4, 3), {'type': 'SE'}, ''), r'^0 \(HostConv2d\) already has an ASR'),
    ],
    ids=[
        'even',
        'not square',
        'transposed',
        '1d',
        'reflect',
        '1 x 1 groups',
        '7 x 7 groups',
        'norm',
        'twice',
        'with ASR',
    ],
)
def test_unsupported_layers_are_rejected_by_name(layer, message):
    network = nn.Sequential(layer)
    with pytest.raises(ValueError, match=message):
        mmasr.attach(network, {'type': 'OREPA'}, sites=['0'])
    assert network[0] is layer


def test_network_without_convolutions_is_rejected():
    with pytest.raises(
        ValueError, match='Sequential has no convolution with an odd square kernel; pass sites='
    ):
        mmasr.attach(nn.Sequential(nn.Linear(3, 4)), {'type': 'OREPA'})


def saved_bytes(network, x):
    """Return the number of bytes saved for the backward pass, without parameters."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x).square().mean()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    loss.backward()
    return sum(size for pointer, size in found.items() if pointer not in own)


def test_only_the_squeezed_kernels_are_saved_for_the_backward_pass():
    plain = torchvision.models.resnet18()
    network = mmasr.attach(copy.deepcopy(plain), {'type': 'OREPA'})
    x = torch.randn(2, 3, 64, 64)
    kernels = sum(host.weight.nbytes for host in network.modules() if isinstance(host, Host))
    # The stem also saves its 3 x 3 kernels and the intermediate results of their composition.
    stem = 4 * 2 * (64 * 3 * 9 + 2 * 64 * 64 * 9 + 64 * 64 * 3 * 25 + 64 * 3 * 49)
    assert saved_bytes(network, x) - saved_bytes(plain, x) <= kernels + stem


def build(backbone, channels=64):
    config = classifier(backbone, channels)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return config, MODELS.build(config.model)


BACKBONE = {
    'type': 'mmasr.ASRResNet',
    'depth': 18,
    'base_channels': 8,
    'out_indices': (3,),
    'norm_eval': False,
}


@pytest.mark.parametrize('asr', [None, {'attention': {'type': 'SE'}}], ids=['alone', 'with ASR'])
@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])
def test_orepa_trains_folds_and_deploys_without_any_difference(tmp_path, asr, wrapped):
    backbone = {**BACKBONE, 'convs': {'type': 'OREPA'}, 'asr': asr}
    if wrapped:
        inner = {key: value for key, value in BACKBONE.items() if key != 'type'}
        backbone = {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'mmdet.ResNet', **inner}}
        backbone.update(convs={'type': 'OREPA'}, asr=asr)
    config, trained = build(backbone)
    trained.init_weights()
    trained.train()
    trained(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in trained.parameters())
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': trained.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert [difference.absolute for difference in report.differences] == [0.0] * len(report.differences)
    assert sorted(set(report.folded.values())) == (['OREPA', 'SE'] if asr else ['OREPA'])
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'convs' not in deployed.model.backbone
    assert 'custom_imports' not in deployed
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(deployed.model)
    stock.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'], strict=True)


def test_init_weights_restores_the_initial_values():
    _, network = build({**BACKBONE, 'convs': {'type': 'OREPA'}})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3.0)
    network.init_weights()
    conv = network.backbone.layer4[1].conv2
    assert [row.unique().tolist() for row in conv.orepa.scale] == [[0.25], [0.5], [0.25], [0.0], [1.0], [0.5]]
    assert uniform(conv.weight, kaiming_bound(9 * 64, 0))
    assert uniform(conv.orepa.outer, kaiming_bound(9 * 64, 0))


def test_weights_of_the_plain_network_load_under_their_names(tmp_path):
    _, plain = build({**BACKBONE, 'type': 'mmdet.ResNet'})
    torch.save(plain.backbone.state_dict(), tmp_path / 'plain.pth')
    options = {'convs': {'type': 'OREPA', 'init_identity': True}}
    pretrained = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'plain.pth')}
    _, network = build({**BACKBONE, **options, 'init_cfg': pretrained})
    network.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval().backbone(x)[0], plain.eval().backbone(x)[0])


def test_frozen_stages_stay_frozen():
    _, network = build({**BACKBONE, 'frozen_stages': 1, 'convs': {'type': 'OREPA'}})
    backbone = network.backbone
    backbone.train()
    frozen = (backbone.conv1, backbone.bn1, backbone.layer1)
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert all(p.requires_grad for p in backbone.layer2.parameters())


def test_orepa_compiles_into_one_graph():
    conv = mmasr.attach(nn.Conv2d(4, 8, 3, padding=1), {'type': 'OREPA'}, '')
    compiled = torch.compile(conv, backend='aot_eager', fullgraph=FULL_GRAPH)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(compiled(x), conv(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in conv.parameters())


@pytest.mark.parametrize('format', [torch.contiguous_format, torch.channels_last])
def test_autocast_and_channels_last(format):
    conv = mmasr.attach(nn.Conv2d(8, 8, 3, padding=1, bias=False), {'type': 'OREPA'}, '').to(
        memory_format=format
    )
    x = torch.randn(2, 8, 6, 6).to(memory_format=format)
    expected = conv(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert conv.reparameterization().effective_parameters(conv)['weight'].dtype == torch.float32
        found = conv(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits


def test_activation_checkpointing_and_deepcopy():
    _, network = build({**BACKBONE, 'with_cp': True, 'convs': {'type': 'OREPA'}})
    copied = copy.deepcopy(network)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    for model in (network, copied):
        model.train()(x).square().mean().backward()
    for a, b in zip(network.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert all(
        isinstance(host.reparameterization(), OREPA) for host in copied.modules() if isinstance(host, Host)
    )


@pytest.mark.parametrize('size', [1, 3, 7])
def test_it_works_with_torch_func_and_is_differentiated_twice(size):
    conv = mmasr.attach(nn.Conv2d(3, 4, size, padding=size // 2), {'type': 'OREPA'}, sites='').double()
    nn.init.normal_(conv.orepa.scale)
    x = torch.randn(2, 3, 8, 8).double()
    names, parameters = zip(*conv.named_parameters(), strict=True)

    def loss(given):
        return torch.func.functional_call(conv, given, (x,)).square().sum()

    def norm(gradients):
        return sum(gradient.square().sum() for gradient in gradients)

    given = dict(zip(names, parameters, strict=True))
    first = torch.autograd.grad(conv(x).square().sum(), parameters)
    torch.testing.assert_close(torch.func.grad(loss)(given), dict(zip(names, first, strict=True)))
    once = torch.autograd.grad(conv(x).square().sum(), parameters, create_graph=True)
    torch.testing.assert_close(once, first)
    twice = torch.autograd.grad(norm(once), parameters)
    expected = torch.func.grad(lambda given: norm(torch.func.grad(loss)(given).values()))(given)
    torch.testing.assert_close(dict(zip(names, twice, strict=True)), expected)


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
def test_gradients_do_not_depend_on_the_memory_format(kernel):
    networks = [nn.Sequential(nn.Conv2d(4, 6, kernel, padding=kernel // 2), nn.Conv2d(6, 6, kernel))]
    randomize(mmasr.attach(networks[0], {'type': 'OREPA'}, sites=['0', '1']))
    networks.append(copy.deepcopy(networks[0]).to(memory_format=torch.channels_last))
    x = torch.randn(2, 4, 16, 16)
    for network, image in zip(networks, (x, x.to(memory_format=torch.channels_last)), strict=True):
        network(image).square().mean().backward()
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-3, atol=1e-4 * first.grad.abs().max())
