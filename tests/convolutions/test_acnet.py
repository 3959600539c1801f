"""ACNet: a sum of three convolutions, with ASR and without, and what it becomes."""

import pytest
import torch
from helpers import classifier, randomize
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet, merge_acnets
from mmasr.deploy.reparameterize import reparameterize


@pytest.mark.parametrize('options', [{}, {'stride': 2}, {'padding': 2, 'dilation': 2}, {'padding': 2}, {'groups': 2}])
def test_it_is_the_sum_and_merges(options):
    acnet = randomize(ACNet(6, 8, **options)).eval()
    x = torch.randn(2, 6, 9, 11)
    with torch.no_grad():
        # The narrow kernels as wide ones with zeros beside them.
        expected = 0
        for (conv, bn), sides in ((acnet.square, (0,) * 4), (acnet.vertical, (1, 1, 0, 0)), (acnet.horizontal, (0, 0, 1, 1))):
            weight = nn.functional.pad(conv.weight, sides)
            wide = {'stride': 1, 'padding': 1, 'dilation': 1, 'groups': 1, **options}
            expected = expected + bn(nn.functional.conv2d(x, weight, **wide))
        torch.testing.assert_close(acnet(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(acnet.merged()(x), expected, rtol=1e-5, atol=1e-5)


def test_too_little_padding_is_refused():
    with pytest.raises(ValueError, match='a padding of at least its dilation, 2, not 1'):
        ACNet(6, 8, padding=1, dilation=2)


def test_one_asr_serves_all_branches():
    acnet = mmasr.attach(randomize(ACNet(6, 8)), {'type': 'SE', 'ratio': 2}, sites='', psi={'std': 1.0}).eval()
    x = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        found = acnet(x)
        v = acnet.asr.scale()
        mmasr.fold(acnet)
        assert torch.equal(acnet(x), found)
    assert type(acnet) is ACNet
    assert not torch.allclose(v, torch.ones(8))


def test_mmcv_builds_it_for_three_by_three_kernels_only():
    conv_cfg = {'type': 'ACNet'}
    module = ConvModule(4, 6, 3, padding=1, conv_cfg=conv_cfg, norm_cfg={'type': 'BN'})
    assert isinstance(module.conv, ACNet)
    assert isinstance(ConvModule(4, 6, 1, conv_cfg=conv_cfg, norm_cfg={'type': 'BN'}).conv, nn.Conv2d)
    randomize(module).eval()
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        expected = module(x)
        merge_acnets(module, lambda: module(x))
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert module.state_dict().keys() == ConvModule(4, 6, 3, padding=1, norm_cfg={'type': 'BN'}).state_dict().keys()


def test_without_batch_norm_after_it_it_stays():
    network = nn.Sequential(ACNet(3, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"^0 can't be merged into a convolution without bias: no BatchNorm"):
        merge_acnets(network.eval(), lambda: network(torch.randn(1, 3, 5, 5)))
    assert isinstance(network[0], ACNet)


@pytest.mark.parametrize(('depth', 'with_asr'), [(18, True), (50, True), (18, False)])
def test_a_resnet_with_acnet_becomes_a_plain_one(tmp_path, depth, with_asr):
    backbone = {'type': 'mmasr.ASRResNet', 'depth': depth, 'base_channels': 8, 'out_indices': (3,), 'norm_eval': False}
    backbone.update(conv_cfg={'type': 'ACNet'}, asr={'attention': {'type': 'SE'}} if with_asr else None)
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
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'conv_cfg' not in deployed.model.backbone
    assert 'custom_imports' not in deployed
