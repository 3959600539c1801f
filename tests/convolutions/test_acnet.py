"""ACNet: the sum of three convolutions, with and without ASR, and the layer that it folds into."""

import pytest
import torch
from helpers import classifier, randomize
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.deploy.reparameterize import reparameterize


@pytest.mark.parametrize(
    'options', [{}, {'stride': 2}, {'padding': 2, 'dilation': 2}, {'padding': 2}, {'groups': 2}]
)
def test_acnet_is_the_sum_of_its_branches_and_merges(options):
    acnet = randomize(ACNet(6, 8, **options)).eval()
    x = torch.randn(2, 6, 9, 11)
    with torch.no_grad():
        # The narrow kernels, padded with zeros to 3 x 3.
        expected = 0
        for (conv, bn), sides in (
            (acnet.square, (0,) * 4),
            (acnet.vertical, (1, 1, 0, 0)),
            (acnet.horizontal, (0, 0, 1, 1)),
        ):
            weight = nn.functional.pad(conv.weight, sides)
            wide = {'stride': 1, 'padding': 1, 'dilation': 1, 'groups': 1, **options}
            expected = expected + bn(nn.functional.conv2d(x, weight, **wide))
        torch.testing.assert_close(acnet(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(acnet.to_single_layer()(x), expected, rtol=1e-5, atol=1e-5)


def test_too_little_padding_is_rejected():
    with pytest.raises(ValueError, match='a padding of at least its dilation, 2, not 1'):
        ACNet(6, 8, padding=1, dilation=2)


def test_one_asr_scales_all_branches():
    acnet = mmasr.attach(
        randomize(ACNet(6, 8)), {'type': 'SE', 'ratio': 2}, sites='', psi={'std': 1.0}
    ).eval()
    x = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        found = acnet(x)
        v = acnet.asr.scale()
        folded = mmasr.fold(acnet)
        # One convolution rounds differently from the sum of three.
        torch.testing.assert_close(folded(x), found, rtol=1e-5, atol=1e-5)
    assert type(folded) is nn.Conv2d
    assert not torch.allclose(v, torch.ones(8))


def test_attach_replaces_only_3x3_convolutions():
    module = nn.Sequential(
        ConvModule(4, 6, 3, padding=1, norm_cfg={'type': 'BN'}), ConvModule(6, 6, 1, norm_cfg={'type': 'BN'})
    )
    weight = module[0].conv.weight.clone()
    mmasr.attach(module, {'type': 'ACNet'})
    assert isinstance(module[0].conv, ACNet)
    assert torch.equal(module[0].conv.square[0].weight, weight)
    assert type(module[1].conv) is nn.Conv2d


@pytest.mark.parametrize(
    ('conv', 'message'),
    [
        (
            nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'),
            "can't become ACNet, which replaces an nn.Conv2d",
        ),
        (nn.Conv2d(3, 4, 3, padding='same'), "can't become ACNet"),
        (nn.Conv1d(3, 4, 3), r'0 \(Conv1d\) can.t become ACNet'),
        (nn.Conv2d(3, 4, 5, padding=2), 'replaces a 3 x 3 convolution'),
        (nn.Conv2d(3, 4, 3), 'a padding of at least its dilation'),
    ],
    ids=['reflecting', 'same', 'Conv1d', '5 x 5', 'no padding'],
)
def test_other_kinds_of_convolutions_are_rejected(conv, message):
    network = nn.Sequential(conv)
    with pytest.raises(ValueError, match=message):
        mmasr.attach(network, {'type': 'ACNet'}, sites=['0'])
    assert network[0] is conv


@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])
def test_acnet_in_frozen_stages_is_frozen(wrapped):
    inner = {'depth': 18, 'base_channels': 8, 'frozen_stages': 1}
    backbone = {'type': 'mmasr.ASRResNet', **inner}
    if wrapped:
        backbone = {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'mmdet.ResNet', **inner}}
    network = MODELS.build({**backbone, 'convs': {'type': 'ACNet'}})
    assert not any(p.requires_grad for p in network.layer1.parameters())
    assert all(p.requires_grad for p in network.layer2.parameters())


def test_sites_from_a_config():
    convs = {'type': 'mmasr.ACNet', 'sites': r'layer4\..*\.conv1'}
    network = MODELS.build({'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'convs': convs})
    found = [name for name, module in network.named_modules() if isinstance(module, ACNet)]
    assert found == ['layer4.0.conv1', 'layer4.1.conv1']


@pytest.mark.parametrize(('depth', 'with_asr'), [(18, True), (50, True), (18, False)])
def test_resnet_with_acnet_deploys_as_a_plain_resnet(tmp_path, depth, with_asr):
    backbone = {
        'type': 'mmasr.ASRResNet',
        'depth': depth,
        'base_channels': 8,
        'out_indices': (3,),
        'norm_eval': False,
    }
    backbone.update(convs={'type': 'ACNet'}, asr={'attention': {'type': 'SE'}} if with_asr else None)
    config = classifier(backbone, 64 if depth == 18 else 256)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(config.model)
    trained.train()
    trained(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for name, p in trained.named_parameters() if not name.startswith('head'))
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': trained.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    assert bool(report.folded) == with_asr
    assert set(report.merged.values()) == {'ACNet'}
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'convs' not in deployed.model.backbone
    assert 'custom_imports' not in deployed
