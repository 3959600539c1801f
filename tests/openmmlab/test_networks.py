"""The plain networks that MMPretrain does not have, with and without ASR."""

import pytest
import torch
from helpers import classifier, plugin, save_network
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ShuffleNetV2
from torch import nn

import mmasr
from mmasr.attention import asr_attentions
from mmasr.convolutions.acnet import ACNet
from mmasr.core.bias_fusion import fuse_biases
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.networks.mobilenet import MobileNet
from mmasr.openmmlab.networks.resnet_cifar import ResNetCIFAR
from mmasr.openmmlab.networks.shufflenet_cifar import ShuffleNetV2CIFAR
from mmasr.stripes import attention_modules


def build(**config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build({'type': 'mmasr.ASRResNetCIFAR', **config})


@pytest.mark.parametrize(
    ('depth', 'block'),
    [(20, BasicBlock), (56, BasicBlock), (110, BasicBlock), (83, Bottleneck), (164, Bottleneck)],
)
def test_resnet_cifar_has_the_right_depth_and_output(depth, block):
    network = build(depth=depth)
    layers = [
        name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and 'downsample' not in name
    ]
    assert len(layers) + 1 == depth  # the classifier is the last layer
    assert isinstance(network.layer1[0], block)
    (output,) = network(torch.zeros(1, 3, 32, 32))
    assert output.shape == (1, 64 * block.expansion, 8, 8)


@pytest.mark.parametrize('name', ['ResNetCIFAR', 'ASRResNetCIFAR'])
def test_resnet_cifar_rejects_an_unknown_depth(name):
    with pytest.raises(InputError, match='no depth 18; the depths are 20, 56, 110, 83, 164'):
        MODELS.build({'type': f'mmasr.{name}', 'depth': 18})


@pytest.mark.parametrize('factor', ['wide', 0, -1, float('nan'), float('inf')])
def test_mobilenet_rejects_a_factor_that_is_not_a_positive_number(factor):
    with pytest.raises(InputError, match='widen_factor must be a positive number'):
        MobileNet(factor)


@pytest.mark.parametrize(
    ('attention', 'cifar100', 'stl10'),
    [
        (None, 1.73, 1.70),
        ('SE', 1.93, 1.91),
        ('SPA', 3.86, 3.83),
        ('IE', 1.74, 1.72),
        ('SRM', 1.76, 1.74),
        ('CBAM', 1.93, 1.90),
    ],
)
def test_resnet164_has_as_many_parameters_as_in_the_paper(attention, cifar100, stl10):
    """Millions of parameters for 100 and for 10 classes, from the paper's Table 1."""
    network = build(depth=164, plugins=attention and [plugin(attention)])
    parameters = sum(p.numel() for p in network.parameters())
    assert [round((parameters + (256 + 1) * classes) / 1e6, 2) for classes in (100, 10)] == [cifar100, stl10]


def test_mobilenet_has_as_many_parameters_as_in_its_paper():
    network = MobileNet()
    classifier = 1024 * 1000 + 1000
    # 4.2 million in the paper's Table 8.
    assert round((sum(p.numel() for p in network.parameters()) + classifier) / 1e6, 1) == 4.2
    (output,) = network(torch.zeros(1, 3, 64, 64))
    assert output.shape == (1, 1024, 2, 2)


def test_shufflenet_for_small_images_loads_mmpretrains_weights():
    network = ShuffleNetV2CIFAR()
    ShuffleNetV2().load_state_dict(network.state_dict(), strict=True)
    (output,) = network(torch.zeros(1, 3, 32, 32))
    assert output.shape == (1, 1024, 4, 4)


@pytest.mark.parametrize('kappa', asr_attentions())
@pytest.mark.parametrize('convs', [None, {'type': 'ACNet'}], ids=['plain', 'ACNet'])
def test_asr_trains_and_folds_to_the_plain_network(kappa, convs):
    backbone = {
        'type': 'mmasr.ASRResNetCIFAR',
        'depth': 20,
        'convs': convs,
        'asr': {'attention': {'type': kappa}},
    }
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(classifier(backbone, 64).model)
    network.init_weights()
    for module in network.modules():
        if isinstance(module, ACNet):
            assert all(branch[1].weight.eq(1 / 3).all() for branch in module.children())
    x = torch.randn(2, 3, 32, 32)
    network.train()
    network(x).square().mean().backward()
    hosts = [m for m in network.modules() if isinstance(m, Host)]
    assert len(hosts) == 9
    assert all(p.grad is not None for host in hosts for p in host.asr.parameters())
    for host in hosts:
        nn.init.normal_(host.asr.psi)
    network.eval()
    with torch.no_grad():
        expected = network(x)
        acnets = [name for name, module in network.named_modules() if isinstance(module, ACNet)]
        fuse_biases(mmasr.fold(network), acnets, lambda: network(x))
        found = network(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert type(network.backbone) is ResNetCIFAR
    ResNetCIFAR(20).load_state_dict(network.backbone.state_dict(), strict=True)


@pytest.mark.parametrize('depth', [56, 83])
@pytest.mark.parametrize('attention', [False, True], ids=['ASR', 'ASR + SE'])
def test_a_classifier_deploys(tmp_path, depth, attention):
    backbone = {
        'type': 'mmasr.ASRResNetCIFAR',
        'depth': depth,
        'base_channels': 4,
        'asr': {'attention': {'type': 'SE'}},
    }
    if attention:
        backbone['plugins'] = [plugin('SE', 'after_conv2' if depth == 56 else 'after_conv3')]
    config = classifier(backbone, 16 if depth == 56 else 64)
    save_network(tmp_path / 'a.pth', config)
    deployed = Config.fromfile(reparameterize(tmp_path / 'a.pth').config)
    # mmdet's BasicBlock supports no plugins, so a network whose attention remains keeps the class of mmasr.
    keeps_class = attention and depth == 56
    assert deployed.model.backbone.type == ('mmasr.ASRResNetCIFAR' if keeps_class else 'mmasr.ResNetCIFAR')
    assert 'asr' not in deployed.model.backbone
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert len(attention_modules(MODELS.build(deployed.model))) == (27 * attention)
