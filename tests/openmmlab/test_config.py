"""Configs are loaded with names as types, whatever their style."""

import pytest
from mmcv.ops import RoIAlign
from mmdet.models import ResNet
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from torch import nn

import mmasr
from mmasr.attention import SE
from mmasr.errors import InputError
from mmasr.openmmlab.backbones.resnet import ASRResNet
from mmasr.openmmlab.config import default_scope, load_config, with_type_names


class NotRegistered(nn.Identity):
    """A class that no registry has."""


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        (ResNet, 'mmdet.ResNet'),
        (ASRResNet, 'mmasr.ASRResNet'),
        (nn.BatchNorm2d, 'BN'),
        (RoIAlign, 'RoIAlign'),  # MMDetection finds it in mmcv.ops
        (pseudo_collate, 'pseudo_collate'),
        (SE, 'mmasr.attention.se.SE'),
        (NotRegistered, f'{__name__}.NotRegistered'),
    ],
)
def test_classes_become_names(kind, name):
    config = with_type_names(Config({'model': {'type': kind, 'x': [{'type': kind}]}}))
    assert config.to_dict() == {'model': {'type': name, 'x': [{'type': name}]}}


def test_only_types_become_names():
    config = with_type_names(Config({'model': {'type': ResNet, 'layer': nn.GELU}}))
    assert config.model.layer is nn.GELU


def test_a_config_with_names_stays_the_same_object():
    config = Config({'model': {'type': 'mmdet.models.ResNet'}})
    assert with_type_names(config) is config


def test_names_that_were_imported_for_a_file_are_not_part_of_it(tmp_path):
    (tmp_path / 'new.py').write_text('from torch import nn\nmodel = dict(type=nn.ReLU)\n')
    config = load_config(tmp_path / 'new.py')
    assert config.to_dict() == {'model': {'type': 'ReLU'}}
    assert config.filename == str(tmp_path / 'new.py')
    assert type(MODELS.build(config.model)) is nn.ReLU


def test_a_config_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r'none\.py: no such config'):
        load_config(tmp_path / 'none.py')


@pytest.mark.parametrize(
    ('config', 'scope'),
    [
        ({'default_scope': 'mmpretrain', 'model': {'type': ResNet}}, 'mmpretrain'),
        ({'default_scope': None, 'model': {'type': ResNet}}, 'mmdet'),
        ({'model': {'type': 'mmdet.ResNet'}}, 'mmdet'),
        ({'model': {'type': 'ResNet'}}, 'mmengine'),
        ({'model': None}, 'mmengine'),
        ({}, 'mmengine'),
    ],
)
def test_the_default_scope_is_that_of_the_model_if_there_is_none(config, scope):
    assert default_scope(Config(config)) == scope


@pytest.mark.parametrize('kind', [SE, 'mmasr.attention.SE', 'mmasr.SE', 'SE'])
def test_attention_may_be_a_class_or_a_path(kind):
    network = mmasr.attach(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), {'type': kind}, ['1'])
    assert isinstance(network[1].asr.attention[0], SE)
