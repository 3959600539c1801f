"""The allow-list, and the list of reviewed classes."""

import ast
import importlib
import importlib.util
from pathlib import Path

import mmcv.ops
import pytest
from mmengine.registry import MODELS
from torch import nn

from mmasr.untrusted import allowlist
from mmasr.untrusted.allowlist import (
    DATA,
    DATA_ARGUMENTS,
    EXCLUDED,
    MODEL,
    PACKAGES,
    allowed_arguments,
    forbidden_arguments,
    is_below,
    path_of,
    reason_against,
)
from mmasr.untrusted.embedded_config import _registries

REVIEWED = Path(allowlist.__file__).with_name('reviewed.txt')
INSTALLED = [package for package in sorted(PACKAGES) if importlib.util.find_spec(package)]


def decorated_names(folder, package):
    """Return the full names of the registered classes and functions in a package, imported or not."""
    names = set()
    for path in Path(folder).rglob('*.py'):
        module = '.'.join((package, *path.relative_to(folder).with_suffix('').parts)).removesuffix(
            '.__init__'
        )
        text = path.read_text(encoding='utf-8')
        if 'register_module' not in text or not is_below(module, MODEL):
            continue
        for node in ast.walk(ast.parse(text)):
            decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
            if any('register_module' in ast.unparse(decorator) for decorator in decorators):
                names.add(f'{module}.{node.name}')
    return names


def unreviewed():
    """Return the full names of installed model classes of OpenMMLab that are allowed, but not reviewed."""
    for package in INSTALLED:
        importlib.import_module(f'{package}.registry' if package != 'mmcv' else package)
    kinds = ('model', 'task util', 'batch augment')
    names = {path_of(found) for r in _registries(kinds, PACKAGES) for found in r.module_dict.values()}
    names |= {f'mmcv.ops.{name}' for name in mmcv.ops.__all__}  # embedded configs may name all of them
    for package in INSTALLED:
        names |= decorated_names(Path(importlib.util.find_spec(package).origin).parent, package)
    allowed = {name for name in names if reason_against(name) is None}
    own = {name for name in allowed if name.startswith(('mmasr.', 'torch.'))}
    return sorted(allowed - own - set(REVIEWED.read_text().splitlines()))


def test_every_allowed_class_was_reviewed():
    """If this fails: read constructor and forward of the class for any use of files, network or ``eval``.

    If it only computes, add it to mmasr/untrusted/reviewed.txt; if not, add it to EXCLUDED.
    """
    assert unreviewed() == []


def test_a_new_class_in_an_allowed_module_was_not_reviewed(monkeypatch):
    class NewNeck(nn.Module):
        pass

    NewNeck.__module__, NewNeck.__qualname__ = 'mmdet.models.necks.new_neck', 'NewNeck'
    monkeypatch.setitem(MODELS.module_dict, 'NewNeck', NewNeck)
    assert unreviewed() == ['mmdet.models.necks.new_neck.NewNeck']


def test_a_new_class_in_a_module_that_is_not_imported_is_found(tmp_path):
    path = tmp_path / 'models/necks/new_neck.py'
    path.parent.mkdir(parents=True)
    path.write_text(
        'raise ImportError\n'
        "@MODELS.register_module(name='New')\nclass NewNeck: pass\n"
        '@MODELS.register_module()\ndef make_neck(): pass\n'
        'class Unregistered: pass\n'
    )
    (tmp_path / 'apis.py').write_text('@MODELS.register_module()\nclass NotAllowed: pass\n')
    module = 'mmdet.models.necks.new_neck'
    assert decorated_names(tmp_path, 'mmdet') == {f'{module}.NewNeck', f'{module}.make_neck'}


def test_the_list_of_reviewed_classes_has_no_forbidden_ones():
    lines = REVIEWED.read_text().splitlines()
    names = [line for line in lines if line and not line.startswith(('#', '['))]
    assert len(names) == len(set(names)) > 600
    assert [name for name in names if reason_against(name) is not None] == []


@pytest.mark.parametrize('package', [name for name in INSTALLED if name != 'mmasr'])
def test_the_installed_version_was_reviewed(package):
    (header,) = (line for line in REVIEWED.read_text().splitlines() if line.startswith(f'[{package}: '))
    assert importlib.import_module(package).__version__ in header.rstrip(']').split()


def test_a_class_is_allowed_by_the_module_that_defines_it():
    assert reason_against(nn.Conv2d) is None
    assert reason_against('mmdet.models.necks.fpn.FPN') is None
    assert reason_against('mmdet.modelsnecks.FPN') == 'it is not on the allow-list'
    assert reason_against(print) == 'it is not on the allow-list'
    assert reason_against(None) == 'it is not on the allow-list'


@pytest.mark.parametrize('name', EXCLUDED)
def test_an_excluded_class_is_not_even_allowed_in_a_trusted_module(name):
    assert reason_against(name) == EXCLUDED[name]
    assert reason_against(f'{name}.Inside', [name.split('.')[0]]) == EXCLUDED[name]


def test_the_classes_of_a_trusted_module_are_allowed():
    assert reason_against('user.module.Class') is not None
    assert reason_against('user.module.Class', ['user']) is None
    assert reason_against('user2.Class', ['user']) is not None


def load(name):
    """Return the class with a full name."""
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize('name', [name for name in DATA if name.split('.')[0] in INSTALLED])
def test_a_class_of_data_is_allowed_with_some_arguments(name):
    assert path_of(load(name)) == name
    assert reason_against(load(name)) is None
    assert allowed_arguments(load(name)) == DATA_ARGUMENTS


@pytest.mark.parametrize('name', [name for name in MODEL if name.split('.')[0] in INSTALLED])
def test_an_allowed_module_exists(name):
    assert importlib.util.find_spec(name)


def test_models_take_all_arguments_except_those_that_load_files():
    assert allowed_arguments(nn.Conv2d) is None
    timm = load('mmpretrain.models.backbones.timm_backbone.TIMMBackbone')
    assert 'model_name' in allowed_arguments(timm)
    for name in ('checkpoint_path', 'pretrained', 'pretrained_cfg', 'cache_dir'):
        assert name not in allowed_arguments(timm)


def test_arguments_that_are_none_or_false_are_not_forbidden():
    config = {'type': 'X', '_scope_': 'y', 'a': 1, 'b': None, 'c': False, 'd': 0, 'e': '', 'f': []}
    assert forbidden_arguments(config, ['a']) == ['d', 'e', 'f']


def test_a_name_is_below_a_module_only_at_a_dot():
    assert is_below('a.b.c', ['x', 'a.b'])
    assert is_below('a.b', ['a.b'])
    assert not is_below('a.bc', ['a.b'])
    assert not is_below('a', ['a.b'])
    assert is_below(nn.Conv2d, ['torch.nn'])
