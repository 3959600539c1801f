"""Where ASR goes in known networks: the paper's Fig. 7 to 11."""

import copy

import pytest
import timm
import torch
import torchvision
from helpers import randomize
from mmdet.models.backbones import ResNet, ResNeXt
from mmpretrain.models import VGG, MobileNetV2, RepVGG, SEResNeXt, ShuffleNetV2, VisionTransformer

import mmasr
from mmasr.core.known import find_sites
from mmasr.core.merge import is_merging

BN = {'type': 'BN'}
# network -> number of sites, the first and the last
NETWORKS = {
    # The last normalization of every block, before the addition.
    'torchvision resnet18': (torchvision.models.resnet18, 8, 'layer1.0.bn2', 'layer4.1.bn2'),
    'timm resnext': (lambda: timm.create_model('resnext50_32x4d'), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    'mmdet ResNet, GN': (lambda: ResNet(50, norm_cfg={'type': 'GN', 'num_groups': 8}), 16, 'layer1.0.gn3', 'layer4.2.gn3'),
    'mmdet ResNeXt': (lambda: ResNeXt(depth=50, groups=32, base_width=4), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    'mmpretrain SEResNeXt': (lambda: SEResNeXt(50), 16, 'layer1.0.bn3', 'layer4.2.bn3'),
    # The normalization before each ReLU.
    'torchvision vgg': (torchvision.models.vgg11_bn, 8, 'features.1', 'features.26'),
    'timm vgg': (lambda: timm.create_model('vgg11_bn'), 8, 'features.1', 'features.26'),
    'mmpretrain VGG': (lambda: VGG(19, norm_cfg=BN), 16, 'features.0.bn', 'features.19.bn'),
    # All branches before each ReLU.
    'timm repvgg': (lambda: timm.create_model('repvgg_a0'), 22, 'stem', 'stages.3.0'),
    'mmpretrain RepVGG': (lambda: RepVGG('A0'), 22, 'stem', 'stage_4.0'),
    # The last normalization of the residual branch.
    'torchvision shufflenet': (torchvision.models.shufflenet_v2_x0_5, 16, 'stage2.0.branch2.6', 'stage4.3.branch2.6'),
    'mmpretrain ShuffleNetV2': (ShuffleNetV2, 16, 'layers.0.0.branch2.2.bn', 'layers.2.3.branch2.2.bn'),
    # Depthwise and pointwise convolution.
    'timm mobilenetv1': (lambda: timm.create_model('mobilenetv1_100'), 26, 'blocks.0.0.bn1', 'blocks.4.1.bn2'),
    'timm mobilenetv2': (lambda: timm.create_model('mobilenetv2_050'), 34, 'blocks.0.0.bn1', 'blocks.6.0.bn3'),
    'torchvision mobilenetv2': (torchvision.models.mobilenet_v2, 34, 'features.1.conv.0.1', 'features.17.conv.3'),
    'mmpretrain MobileNetV2': (MobileNetV2, 34, 'layer1.0.conv.0.bn', 'layer7.0.conv.2.bn'),
    # What multi-head attention and MLP put out.
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
    return output[-1] if isinstance(output, tuple) else output


@pytest.mark.parametrize('name', NETWORKS)
def test_attach_knows_the_sites_and_fold_gives_the_network_back(name):
    make, count, first, end = NETWORKS[name]
    network = make()
    stock = mmasr.fold(copy.deepcopy(network))  # without branches, where blocks add some up
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
        if any(map(is_merging, network.modules())):  # one convolution rounds otherwise than the sum of three
            assert (last(network(x)) - expected).abs().max() <= 1e-5 * expected.abs().max()
        else:  # the product that is folded is the product that ran
            assert torch.equal(last(network(x)), expected)
    assert [type(module) for module in network.modules()] == classes
    assert network.state_dict().keys() == keys


def test_an_unknown_network_has_none():
    assert find_sites(torchvision.models.vgg11()) == []  # nothing before its ReLUs can be scaled but convolutions
    assert find_sites(torch.nn.Sequential(torch.nn.BatchNorm2d(3))) == []
