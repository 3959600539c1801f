"""Converted weights of other code: the network computes the same as there."""

import pytest
import timm
import torch
import torchvision
from helpers import ROOT, agrees, built, randomize
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file
from torch import nn

from mmasr.core.host import Host
from mmasr.deploy.convert import convert
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError


class Attention(nn.Module):
    """SE with the names of the authors' code."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 16)
        self.fc2 = nn.Linear(channels // 16, channels)

    def forward(self, x):
        return self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class ASRNorm(nn.Module):
    """Normalization with ASR in the authors' code; it scales the feature map, and has a folded copy."""

    def __init__(self, channels):
        super().__init__()
        self.bn, self.fused_bn = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.vector = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))
        self.attention_module = Attention(channels)

    def forward(self, x):
        return self.bn(x) * self.attention_module(self.vector)

    @torch.no_grad()
    def deploy(self):
        v = self.attention_module(self.vector).flatten()
        self.fused_bn.load_state_dict(self.bn.state_dict())
        for parameter in self.fused_bn.parameters():
            parameter *= v


class Block(nn.Module):
    def __init__(self, inputs, width, stride, asr, attention):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = (
            nn.Conv2d(width, outputs, 1, bias=False),
            (ASRNorm if asr else nn.BatchNorm2d)(outputs),
        )
        self.attention_module = Attention(outputs) if attention else None
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
        if self.attention_module:
            out = out * self.attention_module(out)
        return (out + (self.downsample(x) if self.downsample else x)).relu()


class Theirs(nn.Module):
    """ResNet83 for CIFAR100."""

    def __init__(self, asr=False, attention=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), 1):
            blocks = nn.Sequential()
            for i in range(9):
                blocks.append(Block(inputs, width, 2 if i == 0 and stage > 1 else 1, asr, attention))
                inputs = 4 * width
            setattr(self, f'layer{stage}', blocks)
        self.fc = nn.Linear(256, 100)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.fc(x.mean((2, 3)))


def trained(network):
    """Set values that reveal a wrong name or a missing fold, and stay within range through 27 blocks."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, Attention):
            randomize(module)
        elif isinstance(module, ASRNorm):
            nn.init.normal_(module.vector)
    return network.eval()


def save(network, path):
    """Save a network like the authors' code: wrapped in DataParallel, with numbers next to the weights."""
    for module in network.modules():
        if isinstance(module, ASRNorm):
            module.deploy()
    weights = {f'module.{name}': tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {'epoch': 164, 'state_dict': weights, 'acc': 75.0, 'best_acc': torch.tensor(75.2), 'optimizer': {}},
        path,
    )
    return path


VARIANTS = {
    '': {},
    '_se': {'attention': True},
    '_asr_se': {'asr': True},
    '_asr_se_se': {'asr': True, 'attention': True},
}


def convert_theirs(folder, variant):
    """Return one of the authors' networks, and the result of converting its checkpoint."""
    theirs = trained(Theirs(**VARIANTS[variant]))
    return theirs, convert(save(theirs, folder / 'model_best.pth.tar'))


@pytest.mark.parametrize('variant', VARIANTS, ids=lambda variant: variant or 'plain')
def test_a_network_of_the_authors_computes_the_same(tmp_path, variant):
    theirs, converted = convert_theirs(tmp_path, variant)
    assert converted.checkpoint == tmp_path / 'model_best_asr.pth'
    assert converted.asrs == 27 * ('asr' in variant)
    config = Config.fromfile(ROOT / f'configs/cifar100/resnet83{variant}.py')
    assert Config.fromfile(converted.config).model.data_preprocessor == config.data_preprocessor
    for way in (config, Config.fromfile(converted.config)):
        assert agrees(built(way, converted.checkpoint), theirs, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize('variant', [variant for variant in VARIANTS if 'asr' in variant])
def test_a_network_of_the_authors_is_deployed(tmp_path, variant):
    theirs, converted = convert_theirs(tmp_path, variant)
    report = reparameterize(converted.checkpoint)
    deployed = built(Config.fromfile(report.config), report.checkpoint)
    assert not any(isinstance(module, Host) for module in deployed.modules())
    assert agrees(deployed, theirs, torch.randn(2, 3, 32, 32))


def test_a_network_without_its_trained_form_becomes_a_plain_network(tmp_path):
    theirs = trained(Theirs(asr=True))
    path = save(theirs, tmp_path / 'x.pth')
    weights = torch.load(path, weights_only=True)['state_dict']
    gone = ('.bn3.bn.', '.vector', '.attention_module.')
    torch.save(
        {name: tensor for name, tensor in weights.items() if not any(part in name for part in gone)}, path
    )
    converted = convert(path)
    assert converted.backbone == {'type': 'mmasr.ASRResNetCIFAR', 'depth': 83}
    model = built(Config.fromfile(converted.config), converted.checkpoint)
    assert agrees(model, theirs, torch.randn(2, 3, 32, 32))


def test_normalizations_that_the_authors_folded_are_checked(tmp_path, refusal):
    theirs = trained(Theirs(asr=True))
    path = save(theirs, tmp_path / 'x.pth')
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['state_dict']['module.layer2.3.bn3.vector'] += 1
    torch.save(checkpoint, path)
    message = refusal('convert.py', path, cwd=tmp_path)
    assert (
        f'{path}: layer2.3.bn3.fused_bn.weight does not match layer2.3.bn3.bn times its attention' in message
    )
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']


def imagenet(library, depth):
    """Return a ResNet of a library with seven classes."""
    if library == 'torchvision':
        return torchvision.models.get_model(f'resnet{depth}', num_classes=7)
    if library == 'timm':
        return timm.create_model(f'resnet{depth}', num_classes=7)
    head = {'type': 'LinearClsHead', 'num_classes': 7, 'in_channels': 512 if depth < 50 else 2048}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(
            {
                'type': 'ImageClassifier',
                'backbone': {'type': 'ResNet', 'depth': depth},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': head,
            }
        )


LIBRARIES = [
    ('torchvision', 18, 'SE'),
    ('torchvision', 50, 'ECA'),
    ('timm', 34, 'SPA'),
    ('mmpretrain', 50, 'SE'),
]


@pytest.fixture(scope='module', params=LIBRARIES, ids=lambda param: '-'.join(map(str, param)))
def case(request, tmp_path_factory):
    """Return a ResNet of a library, its depth, the κ that it gets, and the result of converting it."""
    library, depth, kappa = request.param
    folder = tmp_path_factory.mktemp('convert')
    torch.manual_seed(0)
    theirs = trained(imagenet(library, depth))
    torch.save(theirs.state_dict(), folder / 'x.pth')
    return theirs, depth, kappa, convert(folder / 'x.pth', kappa, folder / 'y.pth')


def test_a_resnet_of_a_library_computes_the_same(case):
    theirs, depth, kappa, converted = case
    assert converted.asrs == {18: 8, 34: 16, 50: 16}[depth]
    config = Config.fromfile(converted.config)
    assert config.model.backbone.asr.attention == {'type': kappa}
    model = built(config, converted.checkpoint)
    assert agrees(model, theirs, torch.randn(2, 3, 64, 64))
    assert all(host.asr.scale().eq(1).all() for host in model.modules() if isinstance(host, Host))


def test_a_detector_can_start_from_converted_weights(case):
    converted = case[-1]
    config = Config.fromfile(converted.config).model.backbone
    pretrained = {'type': 'Pretrained', 'checkpoint': str(converted.checkpoint), 'prefix': 'backbone.'}
    backbone = MODELS.build({**config, 'init_cfg': pretrained})
    backbone.init_weights()
    weights = torch.load(converted.checkpoint, weights_only=True)['state_dict']
    expected = {
        name.removeprefix('backbone.'): tensor
        for name, tensor in weights.items()
        if name.startswith('backbone.')
    }
    found = backbone.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pth'], ids=['safetensors', 'model'])
def test_weights_of_other_formats_are_converted(tmp_path, name):
    network = trained(imagenet('torchvision', 18))
    if name.endswith('.pth'):
        torch.save({'model': network.state_dict(), 'epoch': 3}, tmp_path / name, pickle_protocol=4)
    else:
        save_file(network.state_dict(), tmp_path / name)
    converted = convert(tmp_path / name)
    assert converted.checkpoint.name == 'weights_asr.pth'
    model = built(Config.fromfile(converted.config), converted.checkpoint)
    assert agrees(model, network, torch.randn(2, 3, 64, 64))


def test_a_network_that_is_not_a_resnet_is_refused(tmp_path, refusal):
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / 'squeezenet.pth')
    assert 'not the weights of a supported ResNet: stages of [] blocks' in refusal(
        'convert.py', 'squeezenet.pth', cwd=tmp_path
    )


def test_a_resnext_is_refused(tmp_path, refusal):
    torch.save(torchvision.models.resnext50_32x4d().state_dict(), tmp_path / 'resnext.pth')
    assert (
        "resnext.pth: config and weights don't match: of another shape: backbone.layer1.0.conv1.weight"
        in refusal('convert.py', 'resnext.pth', cwd=tmp_path)
    )


@pytest.fixture
def linear(tmp_path):
    """Return the checkpoint of a network without a convolution."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'x.pth')
    return tmp_path / 'x.pth'


def test_a_refusal_names_the_supported_depths(linear, tmp_path, refusal):
    assert '20, 56, 83, 110, 164' in refusal('convert.py', linear, cwd=tmp_path)


def test_a_missing_file_is_reported(tmp_path, refusal):
    assert 'none.pth: No such file' in refusal('convert.py', 'none.pth', cwd=tmp_path)


def test_an_existing_file_stays_without_force(linear, tmp_path, refusal):
    (tmp_path / 'x_asr.py').write_text('mine')
    assert 'x_asr.py already exists; pass --force' in refusal('convert.py', linear, cwd=tmp_path)
    assert (tmp_path / 'x_asr.py').read_text() == 'mine'


def test_another_suffix_is_refused(linear, tmp_path):
    with pytest.raises(InputError, match=r'must be named \*\.pth'):
        convert(linear, out=tmp_path / 'y.pt')


def test_a_refusal_replaces_nothing_even_with_force(linear, tmp_path, refusal):
    before = linear.read_bytes()
    assert 'none.pth: No such file' in refusal(
        'convert.py', 'none.pth', '--force', '--out', linear, cwd=tmp_path
    )
    assert linear.read_bytes() == before
