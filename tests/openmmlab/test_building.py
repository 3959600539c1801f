"""Errors of building models and runners from configs."""

import inspect

import pytest
from helpers import classifier
from mmengine.config import Config
from mmpretrain.models import MobileNetV2

from mmasr.errors import InputError
from mmasr.openmmlab.building import build_model, build_runner


@pytest.mark.parametrize('config', [{}, {'model': None}, {'model': 'ResNet'}, {'model': [1]}])
def test_a_config_without_a_model_is_an_error(config):
    with pytest.raises(InputError, match='the config has no model; it must be a dict with a type'):
        build_model(Config(config))


@pytest.mark.parametrize(
    'backbone',
    [
        {'type': 'NoSuchNetwork'},
        {'depth': 18},
        {'type': 'mmdet.ResNet', 'depth': 19},
        {'type': 3},
        'mmdet.ResNet',
    ],
)
def test_a_model_that_does_not_build_is_an_error_of_one_line(backbone):
    with pytest.raises(InputError, match=r"^the config's model does not build: [^\n]*$"):
        build_model(classifier(backbone, 512))


def test_an_input_error_of_a_model_is_unchanged():
    with pytest.raises(InputError, match=r'^ASRBackbone has nothing to insert'):
        build_model(classifier({'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'mmdet.ResNet'}}, 512))


def test_a_bug_of_mmasr_is_not_an_input_error(monkeypatch):
    bug = eval(compile('lambda *args: {}["a bug"]', inspect.getfile(build_model), 'eval'))  # code of mmasr
    monkeypatch.setattr('mmasr.openmmlab.backbones.base.attach_in_order', bug)
    asr = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 4, 'asr': {'attention': {'type': 'SE'}}}
    with pytest.raises(KeyError, match='a bug'):
        build_model(classifier(asr, 32))


def test_a_runner_that_does_not_build_is_an_error_of_one_line(tmp_path):
    config = classifier({'type': 'NoSuchNetwork'}, 512)
    config.work_dir = str(tmp_path)
    with pytest.raises(InputError, match=r'^None does not build: [^\n]*$'):
        build_runner(config)


def test_a_config_of_the_new_style_builds():
    """Its types are classes, and it has no default scope."""
    model = {'type': MobileNetV2, 'out_indices': (7,)}
    assert type(build_model(Config({'model': model, 'default_scope': None}))) is MobileNetV2
