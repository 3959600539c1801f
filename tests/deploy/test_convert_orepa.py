"""Converted weights of OREPA's authors, trained or deployed: the network computes the same as there."""

import math
import runpy

import pytest
import torch
from helpers import ROOT, agrees, built
from mmengine.config import Config
from torch import nn
from torch.nn.functional import conv2d, pad

from mmasr.core.host import Host
from mmasr.deploy.convert import convert
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError


class Unit(nn.Module):
    """ConvBN of the authors' code: deploying replaces convolution and normalization by ``deployed``."""

    deployed = 'conv'

    def __init__(self, inputs, outputs, size, stride=1, groups=1):
        super().__init__()
        self.options = {'stride': stride, 'padding': size // 2, 'groups': groups}
        self.add_branches(inputs, outputs, size, groups)
        self.bn = nn.BatchNorm2d(outputs)

    def add_branches(self, inputs, outputs, size, groups):
        self.conv = nn.Conv2d(inputs, outputs, size, groups=groups, bias=False)

    def kernel(self):
        return self.conv.weight

    def forward(self, x):
        if not hasattr(self, 'bn'):
            return getattr(self, self.deployed)(x)
        return self.bn(conv2d(x, self.kernel(), **self.options))

    def deploy(self):
        kernel, bias = folded(self.kernel(), self.bn)
        self._modules.clear()
        self._parameters.clear()
        self._buffers.clear()
        setattr(self, self.deployed, convolution(kernel, bias, **self.options))


def folded(kernel, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return kernel * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def convolution(kernel, bias, groups=1, **options):
    conv = nn.Conv2d(kernel.shape[1] * groups, len(kernel), kernel.shape[-1], groups=groups, **options)
    conv.load_state_dict({'weight': kernel, 'bias': bias})
    return conv


def new(*shape):
    return nn.Parameter(torch.empty(*shape))


class OREPA1x1(Unit):
    """OREPA_1x1."""

    deployed = 'or1x1_reparam'

    def add_branches(self, inputs, outputs, size, groups):
        inner = min(inputs, outputs)
        self.weight_or1x1_origin = new(outputs, inputs, 1, 1)
        self.weight_or1x1_l2i_conv1 = new(inner, inputs, 1, 1)
        self.weight_or1x1_l2i_conv2 = new(outputs, inner, 1, 1)
        self.vector = new(2, outputs)

    def kernel(self):
        two = conv2d(self.weight_or1x1_l2i_conv2, self.weight_or1x1_l2i_conv1.transpose(0, 1))
        origin, in_a_row = self.vector.view(2, -1, 1, 1, 1)
        return origin * self.weight_or1x1_origin + in_a_row * two


def add_square(unit, kind, inputs, outputs, groups, centre=True, unused=0):
    """Add the branches of a 3 x 3 kernel under their names in OREPA, or in a RepVGG block."""
    own = inputs // groups
    inner = 2 * inputs if groups > 4 else inputs
    shapes = {
        'origin': (outputs, own, 3, 3),
        'avg_conv': (outputs, own, 1, 1),
        'pfir_conv': (outputs, own, 1, 1),
        '1x1_kxk_idconv1': (inner, own, 1, 1),
        '1x1_kxk_conv2': (outputs, inner // groups, 3, 3),
        'gconv_dw': (8 * inputs, 1, 3, 3),
        'gconv_pw': (outputs, 8 * own, 1, 1),
        **({'1x1': (outputs, own, 1, 1)} if centre else {}),
    }
    for name, shape in shapes.items():
        unit.register_parameter(f'weight_{kind}_{name}', new(*shape))
    unit.vector = new(5 + centre + unused, outputs)
    unit.register_buffer(f'weight_{kind}_avg_avg', torch.full((3, 3), 1 / 9))
    identity = torch.zeros(inner, own, 1, 1)
    prior = torch.empty(outputs, 3, 3)
    for i in range(inner):
        identity[i, i % own] = 1
    for o in range(outputs):
        for h in range(3):
            for w in range(3):
                at, frequency = (h, o + 1) if o < outputs / 2 else (w, o + 1 - outputs / 2)
                prior[o, h, w] = math.cos(math.pi * (at + 0.5) * frequency / 3)
    unit.register_buffer('id_tensor', identity)
    unit.register_buffer(f'weight_{kind}_prior', prior)


def square(unit, kind, groups):
    """Return the 3 x 3 kernel of these branches, computed group by group.

    A 1 x 1 kernel times 3 x 3 factors is a 3 x 3 kernel.
    """
    w = {
        name.removeprefix(f'weight_{kind}_'): tensor
        for name, tensor in unit.state_dict(keep_vars=True).items()
    }
    first = (w['1x1_kxk_idconv1'] + w['id_tensor']).chunk(groups)
    two = torch.cat(
        [conv2d(b, a.transpose(0, 1)) for a, b in zip(first, w['1x1_kxk_conv2'].chunk(groups), strict=True)]
    )
    outputs, own = w['origin'].shape[:2]
    pointwise = w['gconv_pw'].view(outputs // groups, groups, own, 8)  # the groups' outputs in turn
    separable = torch.einsum(
        'ogit,gitkl->goikl', pointwise, w['gconv_dw'].view(groups, own, 8, 3, 3)
    ).reshape(-1, own, 3, 3)
    branches = [w['origin'], w['avg_conv'] * w['avg_avg'], w['pfir_conv'] * w['prior'][:, None], two]
    branches += [pad(w['1x1'], [1] * 4)] if '1x1' in w else []
    return sum(
        scale.view(-1, 1, 1, 1) * branch
        for scale, branch in zip(w['vector'], [*branches, separable], strict=False)
    )


class OREPAKxK(Unit):
    """OREPA."""

    deployed = 'orepa_reparam'

    def add_branches(self, inputs, outputs, size, groups):
        add_square(self, 'orepa', inputs, outputs, groups)

    def kernel(self):
        return square(self, 'orepa', self.options['groups'])


class OREPALargeKernel(Unit):
    """OREPA_LargeConv of 7 x 7."""

    deployed = 'or_large_reparam'

    def add_branches(self, inputs, outputs, size, groups):
        for i in range(3):
            part = nn.Module()
            add_square(part, 'orepa', inputs if i == 0 else outputs, outputs, 1)
            setattr(self, f'weight{i}', part)

    def kernel(self):
        first, *others = (square(getattr(self, f'weight{i}'), 'orepa', 1) for i in range(3))
        composed = first.transpose(0, 1)
        for other in others:
            composed = conv2d(composed, other, padding=2)
        return composed.transpose(0, 1)


class InRepVGG(Unit):
    """3 x 3 branch of RepVGGBlock_OREPA."""

    def __init__(self, inputs, outputs, stride, unused):
        self.unused = unused
        super().__init__(inputs, outputs, 3, stride)

    def add_branches(self, inputs, outputs, size, groups):
        add_square(self, 'rbr', inputs, outputs, groups, centre=False, unused=self.unused)

    def kernel(self):
        return square(self, 'rbr', 1)


class RepVGGBlock(nn.Module):
    """RepVGGBlock_OREPA or RepVGGBlock, with its ReLU."""

    def __init__(self, inputs, outputs, stride, orepa):
        super().__init__()
        same = inputs == outputs and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inputs) if same else None
        self.rbr_dense = (
            InRepVGG(inputs, outputs, stride, same) if orepa else Unit(inputs, outputs, 3, stride)
        )
        self.rbr_1x1 = Unit(inputs, outputs, 1, stride)

    def forward(self, x):
        if hasattr(self, 'rbr_reparam'):
            return self.rbr_reparam(x).relu()
        return (
            self.rbr_dense(x) + self.rbr_1x1(x) + (self.rbr_identity(x) if self.rbr_identity else 0)
        ).relu()

    def deploy(self):
        options = self.rbr_dense.options
        kernel, bias = folded(self.rbr_dense.kernel(), self.rbr_dense.bn)
        parts = [folded(pad(self.rbr_1x1.kernel(), [1] * 4), self.rbr_1x1.bn)]
        if self.rbr_identity:
            parts.append(folded(pad(torch.eye(len(kernel))[..., None, None], [1] * 4), self.rbr_identity))
        for more, added in parts:
            kernel, bias = kernel + more, bias + added
        self._modules.clear()
        self.rbr_reparam = convolution(kernel, bias, **options)


def unit(kind, inputs, outputs, size, stride=1, groups=1):
    """Return a unit of a network of this kind."""
    orepa = {1: OREPA1x1, 3: OREPAKxK, 7: OREPALargeKernel}[size]
    return (orepa if kind == 'OREPA' else Unit)(inputs, outputs, size, stride, groups)


class Block(nn.Module):
    """Basic block, whose shortcut is always plain; with an inner width, a bottleneck."""

    def __init__(self, kind, inputs, outputs, stride, inner=None, groups=1):
        super().__init__()
        if inner is None:
            convs = unit(kind, inputs, outputs, 3, stride), unit(kind, outputs, outputs, 3)
        else:
            convs = (
                unit(kind, inputs, inner, 1),
                unit(kind, inner, inner, 3, stride, groups),
                unit(kind, inner, outputs, 1),
            )
        for i, conv in enumerate(convs, 1):
            self.add_module(f'conv{i}', conv)
        self.last = f'conv{len(convs)}'
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = unit('base' if inner is None else kind, inputs, outputs, 1, stride)

    def forward(self, x):
        out = x
        for name, conv in self.named_children():
            if name not in ('shortcut', self.last):
                out = conv(out).relu()
        return (getattr(self, self.last)(out) + self.shortcut(x)).relu()


class Theirs(nn.Module):
    """Network with stem, stages and classifier."""

    def __init__(self, stem, stages, channels):
        super().__init__()
        self.stage0 = stem
        for i, blocks in enumerate(stages, 1):
            self.add_module(f'stage{i}', nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, 7)

    def forward(self, x):
        x = self.stage0(x)
        for i in range(1, 5):
            x = getattr(self, f'stage{i}')(x)
        return self.linear(x.mean((2, 3)))


def resnet(kind, depth, width, groups=1, own=None):
    """Return a ResNet; with ``own`` channels per group in the first stage, a ResNeXt."""
    expansion = 1 if depth < 50 else 4
    stem = nn.Sequential()
    stem.add_module('conv1', unit(kind, 3, width, 7, 2))
    stem.add_module('relu', nn.ReLU())
    stem.add_module('maxpool', nn.MaxPool2d(3, 2, 1))
    stages, inputs = [], width
    for stage, count in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
        inner = (own * groups if own else width) * 2**stage if depth >= 50 else None
        outputs = width * 2**stage * expansion
        blocks = []
        for i in range(count):
            blocks.append(Block(kind, inputs, outputs, 2 if i == 0 < stage else 1, inner, groups))
            inputs = outputs
        stages.append(blocks)
    return Theirs(stem, stages, inputs)


def repvgg(kind):
    """Return a RepVGG-A0."""
    stages, inputs = [], 48
    for count, outputs in zip((2, 4, 14, 1), (48, 96, 192, 1280), strict=True):
        blocks = []
        for i in range(count):
            blocks.append(RepVGGBlock(inputs, outputs, 2 if i == 0 else 1, kind == 'OREPA'))
            inputs = outputs
        stages.append(blocks)
    return Theirs(RepVGGBlock(3, 48, 2, kind == 'OREPA'), stages, inputs)


@torch.no_grad()
def trained(network):
    """Set values that reveal a wrong name, row or order, and stay within range through all layers."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.5 if parameter.dim() < 4 else parameter[0].numel() ** -0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@torch.no_grad()
def deployed(network):
    """Deploy a network like the authors' tool."""
    blocks = [module for module in network.modules() if isinstance(module, RepVGGBlock)]
    for module in blocks or [module for module in network.modules() if isinstance(module, Unit)]:
        module.deploy()
    return network


def save(network, path):
    """Save a network like the authors' training."""
    weights = {f'module.{name}': tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {
            'epoch': 120,
            'arch': 'any',
            'state_dict': weights,
            'best_acc1': torch.tensor(72.1),
            'scheduler': {},
        },
        path,
    )
    return path


#: File in configs/imagenet -> the authors' network, arguments that are smaller here, and the number of
#: convolutions with OREPA.
NETWORKS = {
    'resnet18': (lambda kind: resnet(kind, 18, 8), {'base_channels': 8}, 17),
    'resnet50': (lambda kind: resnet(kind, 50, 8), {'base_channels': 8}, 53),
    'resnext50': (
        lambda kind: resnet(kind, 50, 16, 8, 2),
        {'base_channels': 16, 'groups': 8, 'base_width': 2},
        53,
    ),
    'wideresnet18_w96': (lambda kind: resnet(kind, 18, 12), {'base_channels': 12, 'stem_channels': 12}, 17),
    'repvgg_a0': (repvgg, {}, 22),
}


@pytest.fixture(scope='module', params=NETWORKS)
def case(request, tmp_path_factory):
    """Return a network in training form, the name of its config, and the result of converting it."""
    folder = tmp_path_factory.mktemp('orepa')
    torch.manual_seed(0)
    theirs = trained(NETWORKS[request.param][0]('OREPA'))
    return theirs, request.param, convert(save(theirs, folder / 'best.pth.tar'))


def ours(name, theirs):
    """Return a config of configs/imagenet with the width of the network here."""
    config = Config.fromfile(ROOT / f'configs/imagenet/{name}_orepa.py')
    config.model.backbone.update(NETWORKS[name][1])
    config.model.head.update(num_classes=7, in_channels=theirs.linear.in_features)
    return config


def x():
    return torch.randn(2, 3, 64, 64)


def test_a_network_in_training_form_computes_the_same(case):
    theirs, name, converted = case
    assert (converted.asrs, converted.orepas) == (0, NETWORKS[name][2])
    config = ours(name, theirs)
    assert Config.fromfile(converted.config).model.data_preprocessor.mean == config.data_preprocessor.mean
    assert agrees(built(config, converted.checkpoint), theirs, x())


def test_a_network_in_training_form_is_deployed(case):
    """The embedded config is used, which is the one written next to the checkpoint."""
    theirs, _, converted = case
    report = reparameterize(converted.checkpoint)
    model = built(Config.fromfile(report.config), report.checkpoint)
    assert not any(isinstance(module, Host) for module in model.modules())
    assert agrees(model, theirs, x())


@pytest.mark.parametrize(
    ('name', 'kind'), [*((name, 'OREPA') for name in NETWORKS), ('resnet18', 'base'), ('repvgg_a0', 'base')]
)
def test_a_deployed_or_plain_network_computes_the_same(tmp_path, name, kind):
    theirs = trained(NETWORKS[name][0](kind))
    config = ours(name, theirs)
    del config.model.backbone['convs']
    if kind == 'OREPA':
        theirs = deployed(theirs)
        if name == 'repvgg_a0':
            config.model.backbone.deploy = True
    converted = convert(save(theirs, tmp_path / 'x.pth'))
    assert (converted.asrs, converted.orepas) == (0, 0)
    assert agrees(built(config, converted.checkpoint), theirs, x())


@pytest.mark.parametrize('form', ['dbb_reparam', 'conv'])
def test_a_network_deployed_from_dbb_or_plain_convolutions_computes_the_same(tmp_path, form):
    """Their convolutions have the same shapes as those of a deployed OREPA."""
    theirs = deployed(trained(resnet('OREPA', 18, 8)))
    path = save(theirs, tmp_path / 'x.pth')
    edit(
        path,
        lambda weights: {name.replace('orepa_reparam', form): tensor for name, tensor in weights.items()},
    )
    converted = convert(path)
    assert agrees(built(Config.fromfile(converted.config), converted.checkpoint), theirs, x())


def test_the_stem_trains_without_a_7x7_branch_like_the_authors(tmp_path):
    converted = convert(save(trained(resnet('OREPA', 18, 8)), tmp_path / 'x.pth'))
    model = built(Config.fromfile(converted.config), converted.checkpoint).train()
    model(x()).sum().backward()
    stem = model.backbone.conv1
    assert stem.weight.count_nonzero() == stem.weight.grad.count_nonzero() == 0
    assert stem.orepa.scale.grad[0].count_nonzero() == 0
    assert stem.orepa.branches[0].inner.grad.count_nonzero() > 0


def edit(path, change):
    """Change the weights in a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    weights = {name.removeprefix('module.'): tensor for name, tensor in checkpoint['state_dict'].items()}
    torch.save(change(weights), path)


def test_the_tool_prints_the_backbone_and_the_number_of_convolutions(tmp_path, monkeypatch, capsys):
    save(trained(resnet('OREPA', 18, 8)), tmp_path / 'x.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['convert.py', 'x.pth', '--out', 'y.pth'])
    runpy.run_path(str(ROOT / 'tools/convert.py'), run_name='__main__')
    assert (
        capsys.readouterr().out
        == 'mmasr.ASRResNet of depth 18 with OREPA in 17 convolutions\nwrote y.pth and y.py\n'
    )


def renamed(old, new):
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def without(*parts):
    return lambda weights: {
        name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)
    }


def changed(name, change):
    return lambda weights: {**weights, name: change(weights[name])}


SQUARE, DEEP = 'stage1.0.conv1', 'stage0.conv1.weight1'
REFUSALS = {
    'a DBB in training form': (
        renamed(f'{SQUARE}.weight_orepa_origin', f'{SQUARE}.dbb_origin.conv.weight'),
        'is a DBB in training form',
    ),
    'another prior': (
        changed(f'{SQUARE}.weight_orepa_prior', lambda tensor: tensor.flip(1)),
        f"{SQUARE}.weight_orepa_prior differs from the constant in the code of OREPA's authors",
    ),
    'another average': (
        changed(f'{DEEP}.weight_orepa_avg_avg', torch.zeros_like),
        f'{DEEP}.weight_orepa_avg_avg differs from the constant',
    ),
    'another identity': (
        changed(f'{SQUARE}.id_tensor', torch.zeros_like),
        f'{SQUARE}.id_tensor differs from the',
    ),
    'a missing branch': (
        without(f'{SQUARE}.weight_orepa_gconv_pw'),
        f'{SQUARE}.weight_orepa_gconv_pw is missing',
    ),
    'a missing scale': (without(f'{SQUARE}.vector'), f'{SQUARE}.vector is missing'),
    'a missing norm': (without('stage1.0.conv2.bn.running_var'), 'stage1.0.conv2.bn.running_var is missing'),
    'a missing part of the stem': (without(f'{DEEP}.'), f'{DEEP}.weight_orepa_origin is missing'),
    'no stem': (without('stage0.conv1.'), 'not the weights of a supported ResNet'),
    'no classifier': (without('linear.bias'), 'linear.bias is missing'),
    'too few rows': (
        changed(f'{SQUARE}.vector', lambda tensor: tensor[:5]),
        'vector has the shape (5, 8), not (6, 8)',
    ),
    'another number of dimensions': (
        changed(f'{DEEP}.vector', lambda tensor: tensor.flatten()),
        'has the shape (48,)',
    ),
    'a scalar': (
        changed(f'{SQUARE}.weight_orepa_origin', torch.sum),
        'has the shape (), not (any, any, 3, 3)',
    ),
    'no channels': (
        changed(f'{SQUARE}.weight_orepa_origin', lambda tensor: tensor[:, :0]),
        'has the shape (8, 0, 3, 3), not',
    ),
    'a transposed pointwise kernel': (
        changed(f'{SQUARE}.weight_orepa_gconv_pw', lambda tensor: tensor.transpose(0, 1)),
        'has the shape (64, 8, 1, 1), not (8, 64, 1, 1)',
    ),
    'half of the depthwise kernels': (
        changed(f'{SQUARE}.weight_orepa_gconv_dw', lambda tensor: tensor[:32]),
        "config and weights don't match: of another shape: backbone.layer1.0.conv1.orepa.depthwise",
    ),
    'an unknown stage': (
        lambda weights: {**weights, 'stage5.0.x': torch.zeros(1)},
        "stage5.0.x is not a name in the code of OREPA's authors",
    ),
    'a unit of another kind': (
        renamed(f'{SQUARE}.weight_orepa_origin', f'{SQUARE}.y'),
        f'{SQUARE}.y is not a name in the code',
    ),
    'an unknown depth': (
        without('stage4.1.'),
        'stages of [2, 2, 2, 1] blocks. Supported are the depths 18, 34, 50, 101, 152',
    ),
    'another norm': (
        changed('stage0.conv1.bn.weight', lambda tensor: tensor[:4]),
        "config and weights don't match: of another shape: backbone.bn1.weight",
    ),
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Return the bytes of the checkpoint of a ResNet-18 in training form."""
    return save(trained(resnet('OREPA', 18, 8)), tmp_path_factory.mktemp('saved') / 'x.pth').read_bytes()


@pytest.mark.parametrize('refused', REFUSALS)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, saved, refusal, refused):
    path = tmp_path / 'x.pth'
    path.write_bytes(saved)
    change, why = REFUSALS[refused]
    edit(path, change)
    message = refusal('convert.py', path, cwd=tmp_path)
    assert why in message
    assert message.startswith(f'error: {path}: ')
    assert '\n' not in message
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']


def test_a_network_much_larger_than_its_weights_is_not_built(tmp_path):
    """One large unit in the file must not make all others large."""
    path = save(deployed(trained(resnet('OREPA', 18, 8))), tmp_path / 'x.pth')
    unit = 'stage0.conv1.or_large_reparam'
    edit(
        path,
        lambda weights: {
            **weights,
            f'{unit}.weight': torch.zeros(2000, 3, 7, 7),
            f'{unit}.bias': torch.zeros(2000),
        },
    )
    with pytest.raises(InputError, match=r'x\.pth: .*many times larger than its weights'):
        convert(path)


REPVGG_REFUSALS = {
    'plain blocks in training form': (
        renamed('stage0.rbr_dense', 'stage0'),
        'stage0 is neither a RepVGG block in training form nor',
    ),
    'no 1 x 1 branch': (without('stage2.1.rbr_1x1'), 'stage2.1.rbr_1x1.conv.weight is missing'),
    'a scale for the identity': (
        changed('stage1.0.rbr_dense.vector', lambda t: t.repeat(2, 1)),
        'not (5, 48)',
    ),
    'other stages': (
        without('no such'),
        'stages of [2, 4] blocks with [48, 96, 0, 0] channels. Supported are A0, A1',
    ),
}


@pytest.fixture(scope='module')
def saved_repvgg(tmp_path_factory):
    """Return the bytes of the checkpoint of a RepVGG-A0 in training form, without its large last stages."""
    theirs = repvgg('OREPA')
    del theirs.stage3, theirs.stage4
    return save(trained(theirs), tmp_path_factory.mktemp('saved') / 'x.pth').read_bytes()


@pytest.mark.parametrize('refused', REPVGG_REFUSALS)
def test_a_wrong_repvgg_is_refused(tmp_path, saved_repvgg, refused):
    path = tmp_path / 'x.pth'
    path.write_bytes(saved_repvgg)
    change, why = REPVGG_REFUSALS[refused]
    edit(path, change)
    with pytest.raises(InputError) as caught:
        convert(path)
    assert why in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']
