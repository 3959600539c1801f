"""Deployed configs: stock classes, without plugins, hooks, imports and downloads that are not needed."""

import copy

import pytest
from helpers import (
    classifier,
    plugin,
    randomize_norms,
    randomize_scales,
    save_network,
    small_detector,
    without_asr,
)
from mmengine.config import Config

from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

SE = {'type': 'SE'}


def deploy(folder, config):
    """Deploy a network of a config; return the trained network, the report and the deployed config."""
    model = save_network(folder / 'a.pth', config, lambda model: randomize_scales(randomize_norms(model)))
    report = reparameterize(folder / 'a.pth')
    return model, report, Config.fromfile(report.config)


@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        ({'depth': 50, 'asr': {'attention': SE, 'delta': 2, 'init_identity': True}}, 'mmdet.ResNet'),
        ({'type': 'mmasr.ASRResNetV1d', 'norm_cfg': {'type': 'GN', 'num_groups': 4}}, 'mmdet.ResNetV1d'),
        (
            {
                'type': 'mmasr.ASRResNeXt',
                'depth': 50,
                'groups': 4,
                'base_width': 4,
                'norm_cfg': {'type': 'SyncBN'},
            },
            'mmdet.ResNeXt',
        ),
    ],
    ids=['ResNet', 'ResNetV1d', 'ResNeXt'],
)
def test_a_backbone_becomes_its_stock_class(tmp_path, backbone, expected):
    model, report, deployed = deploy(tmp_path, small_detector(**backbone))
    assert deployed.model.backbone.type == expected
    assert 'asr' not in deployed.model.backbone
    delta = len(model.backbone.layer1[0].norm3.asr.attention) if model.backbone.depth >= 50 else 1
    assert set(report.folded.values()) == {' x '.join(['SE'] * delta)}


def test_asr_plugins_are_removed(tmp_path):
    config = without_asr(type='mmdet.ResNet', depth=50, plugins=[plugin('ASR', attention=SE)])
    _, report, deployed = deploy(tmp_path, config)
    assert len(report.folded) == 16
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_attention_plugins_stay(tmp_path):
    config = small_detector(depth=50, plugins=[plugin('ASR', attention=SE), plugin('SE')])
    _, report, deployed = deploy(tmp_path, config)
    assert len(report.folded) == 32
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert [p.cfg.type for p in deployed.model.backbone.plugins] == ['mmasr.SE']
    assert deployed.custom_imports.imports == ['mmasr']


def test_attention_in_basic_blocks_keeps_our_backbone(tmp_path):
    """mmdet's BasicBlock does not support plugins."""
    _, _, deployed = deploy(tmp_path, small_detector(plugins=[plugin('SE', 'after_conv2')]))
    assert deployed.model.backbone.type == 'mmasr.ASRResNet'


def test_a_backbone_with_its_own_scope_and_only_asr_plugins_becomes_its_stock_class(tmp_path):
    config = without_asr(plugins=[plugin('ASR', 'after_conv2', attention=SE)])
    config.model.backbone.update(type='ASRResNet', _scope_='mmasr')
    _, _, deployed = deploy(tmp_path, config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert '_scope_' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_the_backbone_of_a_classifier_becomes_its_stock_class(tmp_path):
    backbone = {
        'type': 'mmasr.ASRResNet',
        'depth': 18,
        'base_channels': 8,
        'out_indices': (3,),
        'asr': {'attention': SE},
    }
    _, report, deployed = deploy(tmp_path, classifier(backbone, 64))
    assert [d.output for d in report.differences] == ['output']
    assert deployed.model.backbone.type == 'mmdet.ResNet'


def test_a_wrapped_backbone_becomes_the_inner_one(tmp_path):
    inner = {
        'type': 'mmpretrain.ResNet',
        'depth': 18,
        'base_channels': 8,
        'stem_channels': 8,
        'out_indices': (0, 1, 2, 3),
    }
    config = small_detector()
    config.model.backbone = {
        'type': 'mmasr.ASRBackbone',
        'backbone': inner,
        'asr': {'attention': {'type': 'ECA'}},
    }
    _, _, deployed = deploy(tmp_path, config)
    assert deployed.model.backbone.to_dict() == inner
    assert 'custom_imports' not in deployed


def test_downloads_and_imports_are_removed():
    config = small_detector(init_cfg={'type': 'Pretrained', 'checkpoint': 'torchvision://resnet18'})
    config.model.neck.init_cfg = {'type': 'Xavier', 'layer': 'Conv2d'}
    config.model.rpn_head.pretrained = True
    config.custom_imports.imports = ['mmasr', 'mmpretrain.models']
    deployed = deployed_config(config)
    assert 'init_cfg' not in deployed.model.backbone
    assert deployed.model.neck.init_cfg.type == 'Xavier'
    assert 'pretrained' not in deployed.model.rpn_head
    assert deployed.custom_imports.imports == ['mmpretrain.models']
    assert config.model.backbone.type == 'mmasr.ASRResNet'  # the trained network's config is unchanged


def test_settings_of_the_training_are_removed():
    config = small_detector()
    config.update(work_dir='work', load_from='epoch_1.pth', resume=True)
    config.custom_hooks = [{'type': 'mmasr.StripeHook'}, {'type': 'EMAHook'}]
    deployed = deployed_config(config)
    assert 'work_dir' not in deployed
    assert (deployed.load_from, deployed.resume) == (None, False)
    assert deployed.custom_hooks == [{'type': 'EMAHook'}]


def test_an_import_that_is_a_string_is_kept():
    config = small_detector()
    config.custom_imports = {'imports': 'mmpretrain.models'}
    assert deployed_config(config).custom_imports.imports == ['mmpretrain.models']


@pytest.mark.parametrize('plugins', [3, 'x', [1], {'cfg': None}, [[]]], ids=repr)
def test_plugins_of_an_unknown_structure_stay_as_they_are(plugins):
    """Nothing that has such plugins is built."""
    config = without_asr(type='mmdet.ResNet')
    config.model.neck.x = {'plugins': plugins}
    before = copy.deepcopy(config.model.neck.to_dict())
    assert deployed_config(config).model.neck.to_dict() == before


#: Configs that no class accepts. One may be in a place of which nothing is built.
ODD = [
    {'type': 'mmasr.ASRBackbone'},
    {'type': 'mmasr.ASRBackbone', 'backbone': 3},
    {'type': 'mmasr.ASRResNet', 'plugins': [{'cfg': {}}]},
    {'type': 'mmasr.ASRResNet', 'plugins': [{'cfg': {'type': 'SE'}}]},
    {'type': 'mmasr.ASRResNet', 'depth': 18, 'plugins': 3},
]


@pytest.mark.parametrize('config', ODD, ids=repr)
def test_arguments_of_an_unexpected_structure_are_an_input_error(config):
    model = small_detector()
    model.model.neck.x = config
    with pytest.raises(InputError, match=rf'the config of {config["type"]} has an unexpected structure: .'):
        deployed_config(model)
