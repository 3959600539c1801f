"""Tests of the default sites of ASR: the paper's Fig. 7 to 11, and its rule in other networks."""

import ast
import copy
from collections import OrderedDict

import mmdet.models.backbones as mmdet
import mmpretrain.models.backbones as mmpretrain
import pytest
import timm
import torch
import torchvision
from helpers import randomize
from mmdet.models.backbones import ResNet, ResNeXt
from mmpretrain.models import VGG, MobileNetV2, RepVGG, SEResNeXt, ShuffleNetV2, VisionTransformer
from torch import nn
from torchvision.models import convnext, efficientnet, regnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

import mmasr
from mmasr.core.merge import has_branches
from mmasr.core.sites import find_sites
from mmasr.errors import InputError

BN = {'type': 'BN'}


def headless(make):
    """Build a VGG without its head, which has most of the parameters."""
    with torch.device('meta'):
        network = make()
    network.pre_logits = network.head = network.classifier = nn.Flatten()
    return network.to_empty(device='cpu')


def mmseg():
    """Return the backbones of MMSegmentation; skip the test if it is not installed."""
    return pytest.importorskip('mmseg.models.backbones')


# network -> number of sites, first and last site
NETWORKS = {
    # The last normalization of every block, before the addition.
    'torchvision resnet18': (torchvision.models.resnet18, 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    'timm resnext': (lambda: timm.create_model('resnext50_32x4d'), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    'mmdet ResNet, GN': (
        lambda: ResNet(50, norm_cfg={'type': 'GN', 'num_groups': 8}),
        16,
        'layer1.0.gn3',
        'layer4.2.gn3',
    ),
    'mmdet ResNeXt': (lambda: ResNeXt(depth=50, groups=32, base_width=4), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    'mmseg ResNetV1c': (lambda: mmseg().ResNetV1c(depth=18), 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    'mmpretrain SEResNeXt': (lambda: SEResNeXt(50), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    # The normalization before each ReLU.
    'torchvision vgg': (lambda: headless(torchvision.models.vgg11_bn), 8, 'features.1', 'features.26'),
    'timm vgg': (lambda: headless(lambda: timm.create_model('vgg11_bn')), 8, 'features.1', 'features.26'),
    'mmpretrain VGG': (lambda: VGG(19, norm_cfg=BN), 16, 'features.0.bn', 'features.19.bn'),
    # All branches before each ReLU.
    'timm repvgg': (lambda: timm.create_model('repvgg_a0'), 22, 'stem', 'stages.3.0'),
    'mmpretrain RepVGG': (lambda: RepVGG('A0'), 22, 'stem', 'stage_4.0'),
    'mmpretrain RepVGG with pooling': (lambda: RepVGG('A0', add_ppf=True), 22, 'stem', 'stage_4.0'),
    # The last normalization of the residual branch.
    'torchvision shufflenet': (
        torchvision.models.shufflenet_v2_x0_5,
        16,
        'stage2.0.branch2.6',
        'stage4.3.branch2.6',
    ),
    'mmpretrain ShuffleNetV2': (ShuffleNetV2, 16, 'layers.0.0.branch2.2.bn', 'layers.2.3.branch2.2.bn'),
    # Depthwise and pointwise convolution.
    'timm mobilenetv1': (
        lambda: timm.create_model('mobilenetv1_100'),
        26,
        'blocks.0.0.bn1',
        'blocks.4.1.bn2',
    ),
    'timm mobilenetv2': (
        lambda: timm.create_model('mobilenetv2_050'),
        34,
        'blocks.0.0.bn1',
        'blocks.6.0.bn3',
    ),
    'torchvision mobilenetv2': (
        torchvision.models.mobilenet_v2,
        34,
        'features.1.conv.0.1',
        'features.17.conv.3',
    ),
    'mmseg MobileNetV2': (lambda: mmseg().MobileNetV2(), 34, 'layer1.0.conv.0.bn', 'layer7.0.conv.2.bn'),
    'mmpretrain MobileNetV2': (MobileNetV2, 34, 'layer1.0.conv.0.bn', 'layer7.0.conv.2.bn'),
    # The outputs of multi-head attention and MLP.
    'torchvision vit': (
        lambda: torchvision.models.vision_transformer.VisionTransformer(64, 16, 2, 2, 32, 64),
        4,
        'encoder.layers.encoder_layer_0.self_attention',
        'encoder.layers.encoder_layer_1.mlp.3',
    ),
    'timm vit': (
        lambda: timm.create_model('vit_tiny_patch16_224', img_size=64),
        24,
        'blocks.0.attn.proj',
        'blocks.11.mlp.fc2',
    ),
    'mmpretrain ViT': (
        lambda: VisionTransformer('deit-tiny', img_size=64),
        24,
        'layers.0.attn.proj',
        'layers.11.ffn.layers.1',
    ),
}


def last(output):
    while not isinstance(output, torch.Tensor):
        output = list(output.values() if isinstance(output, dict) else output)[-1]
    return output


@pytest.mark.parametrize('name', NETWORKS)
def test_attach_finds_the_sites_and_fold_restores_the_network(name):
    make, count, first, end = NETWORKS[name]
    network = make()
    stock = mmasr.fold(copy.deepcopy(network))  # merges the branches of RepVGG
    classes, keys = [type(module) for module in stock.modules()], stock.state_dict().keys()
    sites = find_sites(network)
    assert (len(sites), sites[0], sites[-1]) == (count, first, end)
    assert len(set(sites)) == count

    randomize(mmasr.attach(network, {'type': 'SE'}))
    hosts = [network.get_submodule(site) for site in sites]
    network.train()
    last(network(torch.randn(2, 3, 64, 64))).square().mean().backward()
    assert all(p.grad is not None for host in hosts for p in host.asr.parameters())  # every ASR is used
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = last(network(x))
        mmasr.fold(network)
        if any(map(has_branches, network.modules())):  # one convolution rounds differently
            assert (last(network(x)) - expected).abs().max() <= 1e-5 * expected.abs().max()
        else:  # folding writes the same product that ran
            assert torch.equal(last(network(x)), expected)
    assert [type(module) for module in network.modules()] == classes
    assert network.state_dict().keys() == keys


class HuggingFacesConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.normalization(self.convolution(x)).relu()


class HuggingFacesBlock(nn.Module):
    def __init__(self, layers, inputs, outputs):
        super().__init__()
        self.shortcut = HuggingFacesConv(inputs, outputs)
        rest = [HuggingFacesConv(outputs, outputs) for _ in range(layers - 1)]
        self.layer = nn.Sequential(HuggingFacesConv(inputs, outputs), *rest)

    def forward(self, x):
        return (self.layer(x) + self.shortcut(x)).relu()


def hugging_face(network, block, layers):
    """Build a network with the class and module names of a ResNet of transformers.

    The package itself cannot be installed next to mmpretrain.
    """
    scope = {'__module__': 'transformers.models'}
    make = type(block, (HuggingFacesBlock,), scope)
    blocks = nn.Sequential(make(layers, 8, 8), make(layers, 8, 16))
    return type(network, (nn.Sequential,), scope)(
        OrderedDict({'embedder': HuggingFacesConv(3, 8), 'encoder': blocks})
    )


def stand_in(package, name, base, *args):
    """Make a module whose class has the name and package of a class in a library that is not installed."""
    return type(name, (base,), {'__module__': f'{package}.models'})(*args)


class UltralyticsConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class UltralyticsBottleneck(nn.Module):
    def __init__(self, channels, add):
        super().__init__()
        self.cv1, self.cv2, self.add = UltralyticsConv(channels, 4), UltralyticsConv(4, channels), add

    def forward(self, x):
        return self.cv2(self.cv1(x)) + (x if self.add else 0)


class UltralyticsAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.qkv, self.proj = UltralyticsConv(channels, 4), UltralyticsConv(4, channels)

    def forward(self, x):
        return self.proj(self.qkv(x))


class NarrowDarknet(mmdet.Darknet):
    """Darknet with one narrow block in every stage."""

    arch_settings = {53: ([1] * 5, [(32, 16), *[(16, 16)] * 4])}  # noqa: RUF012, as in the stock class


#: Stages of a narrow HRNet with one block in every branch.
HRNET = {
    f'stage{stage}': {
        'num_modules': 1,
        'num_branches': stage,
        'block': 'BASIC' if stage > 1 else 'BOTTLENECK',
        'num_blocks': (1,) * stage,
        'num_channels': (4, 8, 16, 32)[:stage],
    }
    for stage in range(1, 5)
}


class UltralyticsPSABlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attn, self.add = UltralyticsAttention(channels), True
        self.ffn = nn.Sequential(UltralyticsConv(channels, 4), UltralyticsConv(4, channels))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.ffn(x)


class UltralyticsC2f(nn.Module):
    """Has blocks between two convolutions of its own."""

    def __init__(self, channels, *blocks):
        super().__init__()
        self.cv1, self.cv2 = UltralyticsConv(channels, 8), UltralyticsConv(8, 8)
        self.m = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.cv1(x)
        for block in self.m:
            x = block(x)
        return self.cv2(x)


def ultralytics():
    """Build a network like theirs: blocks have a residual addition in the backbone but not in the neck."""
    residual, plain, pooling = (
        stand_in('ultralytics', name, UltralyticsBottleneck, 8, add)
        for name, add in (('Bottleneck', True), ('Bottleneck', False), ('SPPF', True))
    )
    attention = stand_in('ultralytics', 'PSABlock', UltralyticsPSABlock, 8)
    backbone = stand_in('ultralytics', 'C2f', UltralyticsC2f, 8, residual, attention)
    neck = stand_in('ultralytics', 'C3', UltralyticsC2f, 8, plain)
    layers = nn.Sequential(UltralyticsConv(3, 8), backbone, neck, pooling)
    return stand_in('ultralytics', 'BaseModel', nn.Sequential, OrderedDict(model=layers))


class MBConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self._expand_conv, self._bn0 = nn.Conv2d(inputs, 16, 1), nn.BatchNorm2d(16)
        self._depthwise_conv, self._bn1 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self._project_conv, self._bn2 = nn.Conv2d(16, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = nn.functional.silu(self._bn0(self._expand_conv(x)))
        return self._bn2(self._project_conv(nn.functional.silu(self._bn1(self._depthwise_conv(x)))))


def smp(network, block, make, *shapes):
    blocks = [stand_in('segmentation_models_pytorch', block, make, *shape) for shape in shapes]
    return stand_in('segmentation_models_pytorch', network, nn.Sequential, *blocks)


# small network -> number of sites, first and last site
OTHER_NETWORKS = {
    # The last normalization of every block, before the addition.
    'torchvision RegNet': (
        lambda: regnet.RegNet(
            regnet.BlockParams([1, 2], [16, 32], [8, 8], [1, 1], [2, 2], 0.25), stem_width=8
        ),
        *(3, 'trunk_output.block1.block1-0.f.c.1', 'trunk_output.block2.block2-1.f.c.1'),
    ),
    'timm RegNet': (lambda: timm.create_model('regnety_002'), 13, 's1.b1.conv3.bn', 's4.b7.conv3.bn'),
    'mmdet RegNet': (lambda: mmdet.RegNet('regnetx_400mf'), 22, 'layer1.0.bn3', 'layer4.11.bn3'),
    'mmpretrain RegNet': (lambda: mmpretrain.RegNet('regnetx_400mf'), 22, 'layer1.0.bn3', 'layer4.11.bn3'),
    'timm Res2Net': (
        lambda: timm.create_model('res2net50_14w_8s', layers=[1, 2, 1, 1]),
        *(5, 'layer1.0.bn3', 'layer4.0.bn3'),
    ),
    'mmdet Res2Net': (lambda: mmdet.Res2Net(depth=50, base_channels=16), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    'mmpretrain Res2Net': (
        lambda: mmpretrain.Res2Net(depth=50, base_channels=16),
        16,
        'layer1.0.bn3',
        'layer4.2.bn3',
    ),
    'timm ResNeSt': (
        lambda: timm.create_model('resnest14d', stem_width=8, base_width=16),
        4,
        'layer1.0.bn3',
        'layer4.0.bn3',
    ),
    'mmdet ResNeSt': (
        lambda: mmdet.ResNeSt(depth=50, stem_channels=8, base_channels=16),
        *(16, 'layer1.0.bn3', 'layer4.2.bn3'),
    ),
    'mmpretrain ResNeSt': (
        lambda: mmpretrain.ResNeSt(depth=50, stem_channels=8, base_channels=16),
        *(16, 'layer1.0.bn3', 'layer4.2.bn3'),
    ),
    "torchvision's detectors": (
        lambda: IntermediateLayerGetter(torchvision.models.resnet18(), {'layer3': '0'}),
        *(6, 'layer1.0.bn2', 'layer3.1.bn2'),
    ),
    "timm's features": (
        lambda: timm.create_model('resnet10t', features_only=True),
        *(4, 'layer1.0.bn2', 'layer4.0.bn2'),
    ),
    'transformers ResNet': (
        lambda: hugging_face('ResNetModel', 'ResNetBottleNeckLayer', 3),
        *(2, 'encoder.0.layer.2.normalization', 'encoder.1.layer.2.normalization'),
    ),
    'transformers ResNet, basic': (
        lambda: hugging_face('ResNetBackbone', 'ResNetBasicLayer', 2),
        *(2, 'encoder.0.layer.1.normalization', 'encoder.1.layer.1.normalization'),
    ),
    'mmseg ResNeXt': (
        lambda: mmseg().ResNeXt(depth=50, base_channels=16, groups=4, base_width=4),
        *(16, 'layer1.0.bn3', 'layer4.2.bn3'),
    ),
    'mmseg ResNeSt': (
        lambda: mmseg().ResNeSt(depth=50, stem_channels=8, base_channels=16),
        *(16, 'layer1.0.bn3', 'layer4.2.bn3'),
    ),
    'transformers RT-DETR': (
        lambda: hugging_face('RTDetrResNetBackbone', 'RTDetrResNetBottleNeckLayer', 3),
        *(2, 'encoder.0.layer.2.normalization', 'encoder.1.layer.2.normalization'),
    ),
    'transformers RT-DETR, basic': (
        lambda: hugging_face('RTDetrResNetBackbone', 'RTDetrResNetBasicLayer', 2),
        *(2, 'encoder.0.layer.1.normalization', 'encoder.1.layer.1.normalization'),
    ),
    'smp SENet': (
        lambda: smp(
            'SENetEncoder',
            'Bottleneck',
            torchvision.models.resnet.Bottleneck,
            (3, 1, 1, nn.Conv2d(3, 4, 1)),
            (4, 1),
        ),
        *(2, '0.bn3', '1.bn3'),
    ),
    # The same if an activation comes between the normalization and the addition.
    'ultralytics': (ultralytics, 4, 'model.1.m.0.cv2.bn', 'model.3.cv2.bn'),
    'mmdet CSPDarknet': (
        lambda: mmdet.CSPDarknet(deepen_factor=0.33, widen_factor=0.125),
        *(8, 'stage1.1.blocks.0.conv2.bn', 'stage4.2.blocks.0.conv2.bn'),
    ),
    'mmdet CSPDarknet, depthwise': (
        lambda: mmdet.CSPDarknet(deepen_factor=0.33, widen_factor=0.125, use_depthwise=True),
        *(8, 'stage1.1.blocks.0.conv2.pointwise_conv.bn', 'stage4.2.blocks.0.conv2.pointwise_conv.bn'),
    ),
    'mmdet Darknet': (
        lambda: NarrowDarknet(53),
        *(5, 'conv_res_block1.res0.conv2.bn', 'conv_res_block5.res0.conv2.bn'),
    ),
    'mmdet HRNet': (lambda: mmdet.HRNet(HRNET), *(10, 'layer1.0.bn3', 'stage4.0.branches.3.0.bn2')),
    'mmpretrain HRNet': (
        lambda: mmpretrain.HRNet(extra=HRNET),
        *(10, 'layer1.0.bn3', 'stage4.0.branches.3.0.bn2'),
    ),
    'mmdet Hourglass': (
        lambda: mmdet.HourglassNet(2, 2, (16, 16, 16), (1, 1, 1), feat_channel=16),
        *(16, 'stem.1.0.bn2', 'inters.0.bn2'),
    ),
    'mmdet CSPNeXt': (
        lambda: mmdet.CSPNeXt(deepen_factor=0.33, widen_factor=0.125),
        *(6, 'stage1.1.blocks.0.conv2.pointwise_conv.bn', 'stage4.2.blocks.0.conv2.pointwise_conv.bn'),
    ),
    'mmpretrain CSPDarkNet': (
        lambda: mmpretrain.CSPDarkNet(depth=53),
        *(23, 'stages.0.blocks.0.conv2.bn', 'stages.4.blocks.3.conv2.bn'),
    ),
    # The last layer is linear.
    'torchvision ConvNeXt': (
        lambda: convnext.ConvNeXt([convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 2)]),
        *(3, 'features.1.0.block.5', 'features.3.1.block.5'),
    ),
    'timm ConvNeXt': (
        lambda: timm.create_model('test_convnext'),
        9,
        'stages.0.blocks.0.mlp.fc2',
        'stages.3.blocks.1.mlp.fc2',
    ),
    'mmpretrain ConvNeXt': (
        lambda: mmpretrain.ConvNeXt({'depths': [1, 1, 1, 1], 'channels': [8, 16, 24, 32]}),
        *(4, 'stages.0.0.pointwise_conv2', 'stages.3.0.pointwise_conv2'),
    ),
    # The depthwise and the last convolution, as in MobileNetV2.
    'torchvision EfficientNet': (
        lambda: efficientnet.EfficientNet(
            [efficientnet.MBConvConfig(*c, 2) for c in ((1, 3, 1, 8, 8), (6, 3, 2, 8, 16))], 0.2
        ),
        *(8, 'features.1.0.block.0.1', 'features.2.1.block.3.1'),
    ),
    'smp EfficientNet': (
        lambda: smp('EfficientNetEncoder', 'MBConvBlock', MBConv, (3, 8), (8, 8)),
        *(4, '0._bn1', '1._bn2'),
    ),
    'mmseg MobileNetV3': (
        lambda: mmseg().MobileNetV3('small'),
        *(22, 'layer1.depthwise_conv.bn', 'layer11.linear_conv.bn'),
    ),
    'timm EfficientNet': (
        lambda: timm.create_model('efficientnet_b0'),
        32,
        'blocks.0.0.bn1',
        'blocks.6.0.bn3',
    ),
    'mmdet EfficientNet': (
        lambda: mmdet.EfficientNet('b0'),
        32,
        'layers.1.0.depthwise_conv.bn',
        'layers.5.4.linear_conv.bn',
    ),
    'mmpretrain EfficientNet': (
        lambda: mmpretrain.EfficientNet('b0'),
        *(32, 'layers.1.0.depthwise_conv.bn', 'layers.5.4.linear_conv.bn'),
    ),
}


def vary(network):
    """Draw all values per channel, since 0 and 1 may hide a wrong fold; use eval mode and doubles."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() == max(parameter.shape):
                parameter.uniform_(0.5, 0.9)
        for name, buffer in network.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.uniform_(0.5, 0.9)
    network.double().eval()
    return network


@pytest.mark.parametrize('name', OTHER_NETWORKS)
def test_other_networks_match_the_papers_form_in_values_and_gradients_and_fold(name):
    make, count, first, end = OTHER_NETWORKS[name]
    stock = vary(make())
    sites = find_sites(stock)
    assert (len(sites), sites[0], sites[-1]) == (count, first, end)

    network = mmasr.attach(copy.deepcopy(stock), {'type': 'IE'})
    form = copy.deepcopy(stock)  # the paper's form multiplies feature maps
    asrs = {site: copy.deepcopy(randomize(network.get_submodule(site).asr)) for site in sites}
    for site, asr in asrs.items():
        layer = form.get_submodule(site)
        layer = getattr(layer, 'drop', layer)  # timm's BatchNormAct2d has it before its activation
        layer.register_forward_hook(
            lambda layer, _, out, asr=asr: out * asr.scale() if isinstance(layer, nn.Linear) else asr(out)
        )
    x = torch.rand(2, 3, 64, 64, dtype=torch.double)
    outputs = [last(network(x)), last(form(x))]
    torch.testing.assert_close(*outputs)
    assert (outputs[0] - last(stock(x))).abs().max() > 0.01 * outputs[0].abs().max()
    for output in outputs:
        output.square().mean().backward()
    for site, asr in asrs.items():
        psi = network.get_submodule(site).asr.psi
        assert psi.grad.abs().max() > 0
        torch.testing.assert_close(psi.grad, asr.psi.grad)
    for parameter, other in zip(stock_parameters(network), form.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)

    with torch.no_grad():
        expected = last(network(x))
        mmasr.fold(network)
        assert [type(module) for module in network.modules()] == [type(module) for module in stock.modules()]
        stock.load_state_dict(network.state_dict())
        assert torch.equal(last(stock(x)), expected)


def stock_parameters(network):
    return [parameter for name, parameter in network.named_parameters() if '.asr.' not in name]


@pytest.mark.parametrize(
    ('name', 'block'),
    [
        ('timm:cspnext_s', None),
        ('timm:mobilevit_xxs', r'stages\.0\.0 \(BottleneckBlock\)'),
        ('timm:efficientnet_es', r'blocks\.0\.0 \(EdgeResidual\)'),
        ('timm:skresnet18', r'layer1\.0\.conv1 \(SelectiveKernel\)'),
        ('timm:hrnet_w18_small', None),
        ('timm:vit_base_patch16_siglip_224', r'attn_pool \(AttentionPoolLatent\)'),
        ('torchvision:efficientnet_v2_s', r'features\.2\.0 \(FusedMBConv\)'),
    ],
)
def test_an_unknown_or_partly_known_network_is_rejected_with_possible_sites(name, block):
    package, name = name.split(':')
    with torch.device('meta'):
        network = timm.create_model(name) if package == 'timm' else getattr(torchvision.models, name)()
    problem = f'is only partly known: {block} is not' if block else 'is not a network with known sites'
    message = rf'{problem}; pass sites=, for example some of \w+.* and \d+ more$'
    with pytest.raises(InputError, match=message):
        mmasr.attach(network, {'type': 'SE'})


def test_the_sites_of_a_detector_are_in_its_backbone_and_not_in_its_neck():
    network = nn.ModuleDict(
        {
            'backbone': mmdet.CSPNeXt(deepen_factor=0.33, widen_factor=0.125),
            'neck': mmdet.cspnext.CSPLayer(8, 8, use_cspnext_block=True),
        }
    )
    assert {site.split('.')[0] for site in find_sites(network)} == {'backbone'}


@pytest.mark.parametrize(
    'make',
    [
        lambda: torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d),
        lambda: IntermediateLayerGetter(
            torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d), {'layer4': '0'}
        ),
        lambda: timm.layers.freeze_batch_norm_2d(timm.create_model('resnet18')),
        lambda: torchvision.models.mobilenet_v3_small(norm_layer=FrozenBatchNorm2d),
    ],
    ids=['torchvision', "torchvision's detectors", 'timm', 'MobileNetV3'],
)
def test_frozen_normalizations_are_rejected_with_the_convolutions_before_them(make):
    network = make().eval()
    message = r'\(FrozenBatchNorm2d\) has constants and nothing to train; use the convolution before it: pass'
    with pytest.raises(InputError, match=message) as error:
        mmasr.attach(network, {'type': 'SE'})
    sites = ast.literal_eval(str(error.value).partition('sites=')[2])
    assert len(sites) == len(find_sites(network))
    mmasr.attach(network, {'type': 'SE'}, sites)
    assert all(isinstance(network.get_submodule(site), nn.Conv2d) for site in sites)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = last(network(x))
        assert torch.equal(last(mmasr.fold(network)(x)), expected)


def test_an_unknown_network_has_no_sites():
    with torch.device('meta'):
        vgg = torchvision.models.vgg11()
    assert find_sites(vgg) == []  # it has no normalizations
    assert find_sites(torch.nn.Sequential(torch.nn.BatchNorm2d(3))) == []
