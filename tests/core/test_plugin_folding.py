"""Tests of folding ASRs that are plugins of OpenMMLab's residual blocks."""

import pytest
import torch
from helpers import assert_folds_to, plugin, randomize_scales
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.utils import register_all_modules
from mmengine.registry import MODELS
from torch import nn

import mmasr
from mmasr.core.host import Host
from mmasr.errors import InputError

SE = {'type': 'SE'}


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


def build(**config):
    return MODELS.build(
        {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 16, 'norm_eval': False, **config}
    )


def with_plugins(*plugins):
    return MODELS.build({'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 16, 'plugins': list(plugins)})


class Signed(nn.Module):
    def weights(self, x):
        return x.tanh()


def negative(position):
    return plugin('ASR', position, attention=lambda channels: Signed(), psi=-1.0)


def test_plugins_at_all_positions_fold_to_the_stock_bottleneck():
    plugins = [plugin('ASR', f'after_conv{i}', postfix=i, attention=SE, delta=i) for i in (1, 2, 3)]
    model = with_plugins(*plugins)
    assert_folds_to(model, Bottleneck)
    assert model.state_dict().keys() == ResNet(depth=50, base_channels=16).state_dict().keys()


def test_plugins_at_all_positions_fold_to_the_stock_basic_block():
    plugins = [plugin('ASR', f'after_conv{i}', postfix=i, attention=SE) for i in (1, 2)]
    assert_folds_to(build(plugins=plugins, asr={'attention': SE}), ResNet, BasicBlock)


def test_plugins_in_some_stages_fold_to_the_stock_block():
    plugins = [{**plugin('ASR', 'after_conv2', attention=SE), 'stages': (False, True, False, False)}]
    assert_folds_to(build(plugins=plugins), ResNet, BasicBlock)


@pytest.mark.parametrize('depth', [18, 50])
def test_ordinary_attention_after_a_plugin_stays(depth):
    last = 'after_conv2' if depth == 18 else 'after_conv3'
    model = build(
        depth=depth, asr={'attention': SE}, plugins=[plugin('ASR', last, attention=SE), plugin('SE', last)]
    )
    x = torch.randn(2, 3, 64, 64)
    randomize_scales(model).eval()
    expected = model(x)
    mmasr.fold(model)
    assert not [m for m in model.modules() if isinstance(m, Host | mmasr.ASR)]
    assert sum(isinstance(m, mmasr.SE) for m in model.modules()) == (8 if depth == 18 else 16)
    for actual, reference in zip(model(x), expected, strict=True):
        assert (actual - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_a_plugin_without_a_normalization_before_it_is_rejected():
    model = MODELS.build(
        {'type': 'mmdet.Res2Net', 'depth': 50, 'plugins': [plugin('ASR', 'after_conv2', attention=SE)]}
    )
    with pytest.raises(InputError, match='no normalization after convolution 2'):
        mmasr.fold(model)


def test_a_plugin_after_attention_is_rejected():
    model = with_plugins(plugin('SE', 'after_conv3'), plugin('ASR', 'after_conv3', attention=SE))
    with pytest.raises(InputError, match=r'layer1\.0\.asr .*comes after se, which depends on the image'):
        mmasr.fold(model)


def test_a_plugin_with_a_negative_scale_after_a_relu_is_rejected_and_nothing_changes():
    model = with_plugins(negative('after_conv2'))
    with pytest.raises(InputError, match=r'layer1\.0\.asr .*its scale is negative and it comes after a ReLU'):
        mmasr.fold(model)
    assert len([m for m in model.modules() if isinstance(m, mmasr.ASR)]) == 16


def test_a_plugin_with_a_negative_scale_before_the_addition_folds():
    """No ReLU comes between the normalization and the plugin."""
    assert_folds_to(with_plugins(negative('after_conv3')))


def test_a_normalization_without_parameters_is_rejected_by_name():
    model = with_plugins(plugin('ASR', 'after_conv3', attention=SE))
    model.layer2[1].bn3 = nn.BatchNorm2d(128, affine=False)
    with pytest.raises(InputError, match=r'^layer2\.1\.norm3 \(BatchNorm2d\) has no weight of its own'):
        mmasr.fold(model)
