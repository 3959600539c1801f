"""Trained checkpoints become deployed files that stock MMDetection loads, or nothing is written."""

import importlib
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    SHAPES_CONFIG,
    Touch,
    full_disk,
    plugin,
    run_tool,
    save_network,
    small_detector,
    stock_predictions,
    without_asr,
)
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from torch import nn

import mmasr
from mmasr.deploy import reparameterize as reparam
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.config import walk
from mmasr.untrusted import write_config


def load(path):
    return torch.load(path, weights_only=False)


def randomize_running_variances(model):
    """Draw ψ of every ASR and the running variances; return the model."""
    for module in model.modules():
        if isinstance(module, mmasr.ASR):
            nn.init.normal_(module.psi)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def save(path, config, prefix='', dtype=None):
    """Save a checkpoint of a config's model, with random scales; return its path and the model.

    Its weights get a prefix and a type.
    """
    model = save_network(path, config, randomize_running_variances)

    def change(checkpoint):
        weights = {prefix + name: tensor for name, tensor in checkpoint['state_dict'].items()}
        if dtype:
            weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        checkpoint['state_dict'] = weights
        checkpoint['meta'].update(epoch=12, dataset_meta={'classes': ('a', 'b')})

    return edit(path, change), model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('deployed')


@pytest.fixture(scope='module')
def deployed(checkpoint, folder):
    """Return the report of deploying a checkpoint of mmengine's runner."""
    return reparameterize(checkpoint, out=folder / 'x.pth')


# The Makefile creates two environments, with the maintained packages and with the upstream ones.
OTHER = ROOT / ('.venv' if Path(sys.prefix).name == '.venv-upstream' else '.venv-upstream') / 'bin/python'
IN_OTHER_ENVIRONMENT = pytest.param(
    OTHER, marks=pytest.mark.skipif(not OTHER.exists(), reason=f'{OTHER} does not exist')
)


@pytest.mark.parametrize(
    'python', [None, IN_OTHER_ENVIRONMENT], ids=['this environment', 'the other environment']
)
def test_stock_mmdetection_predicts_the_same_as_the_trained_network(checkpoint, deployed, tmp_path, python):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    ((bboxes, scores, labels, masks),) = stock_predictions(
        deployed.config, deployed.checkpoint, [image], tmp_path, python
    )

    trained = init_detector(str(SHAPES_CONFIG), None, device='cpu')
    trained.load_state_dict(load(checkpoint)['state_dict'])
    expected = inference_detector(trained, image).pred_instances
    assert len(expected) > 0
    # Folding writes the very products that ran, so only convolutions may round differently: 1e-4 of the size.
    torch.testing.assert_close(bboxes, expected.bboxes, rtol=0, atol=1e-4 * 128)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
    assert torch.equal(labels, expected.labels)
    assert (masks == expected.masks).float().mean() > 0.9999


def test_the_report_lists_folded_layers_outputs_and_parameters(checkpoint, deployed):
    assert len(deployed.folded) == 8
    assert max(d.relative for d in deployed.differences) <= 1e-4
    assert {d.output.split('.')[0] for d in deployed.differences} == {'features', 'rpn_head', 'roi_head'}
    assert deployed.parameters[0] - deployed.parameters[1] == sum(
        t.numel()
        for n, t in load(checkpoint)['state_dict'].items()
        if '.asr.' in n and not n.endswith('initial')
    )


def test_a_checkpoint_becomes_a_pair_of_files(deployed, folder):
    assert (deployed.checkpoint, deployed.config) == (folder / 'x.pth', folder / 'x.py')
    assert sorted(folder.iterdir()) == [folder / 'x.pth', folder / 'x.py']


def test_a_deployed_checkpoint_contains_weights_and_their_origin(checkpoint, deployed):
    found, source = torch.load(deployed.checkpoint, weights_only=True), load(checkpoint)
    assert set(found) == {'meta', 'state_dict'}  # no optimizer, no message hub, no second set of weights
    kept = ('epoch', 'dataset_meta', 'mmengine_version', 'seed', 'time', 'experiment_name', 'iter')
    assert {key: found['meta'][key] for key in kept} == {key: source['meta'][key] for key in kept}
    assert found['meta']['mmasr']['folded'] == {
        f'backbone.layer{i}.{j}.bn2': 'SE' for i in (1, 2, 3, 4) for j in (0, 1)
    }
    assert found['meta']['cfg'] == deployed.config.read_text()


def test_a_deployed_config_needs_only_mmdetection(deployed):
    config = Config.fromfile(deployed.config)
    assert 'custom_imports' not in config
    assert not [value for _, value in walk(config.to_dict()) if str(value).startswith('mmasr')]
    assert config.model.backbone.type == 'mmdet.ResNet'


def test_the_averaged_weights_of_ema_are_deployed(checkpoint, deployed):
    """With EMA, the runner saves them as state_dict."""
    name, source = 'backbone.conv1.weight', load(checkpoint)
    assert torch.equal(load(deployed.checkpoint)['state_dict'][name], source['state_dict'][name])
    assert not torch.equal(source['state_dict'][name], source['ema_state_dict'][f'module.{name}'])


@pytest.mark.parametrize(
    ('options', 'bound'),
    [
        ({}, 1e-4),
        ({'prefix': 'module.'}, 1e-4),
        ({'dtype': torch.float16}, 5e-3),
        ({'dtype': torch.bfloat16}, 4e-2),
    ],
    ids=['plain', 'module.', 'fp16', 'bf16'],
)
@pytest.mark.parametrize('embed', [True, False], ids=['embedded', '--config'])
def test_weights_of_each_type_are_deployed(tmp_path, options, bound, embed):
    config = small_detector()
    path, model = save(tmp_path / 'a.pth', config, **options)
    config_file = None
    if not embed:
        config_file = tmp_path / 'config.py'
        config.dump(config_file)
        torch.save(load(path)['state_dict'], path)
    report = reparameterize(path, config=config_file)
    assert report.checkpoint == tmp_path / 'a_deploy.pth'
    assert report.bound == bound
    weights = load(report.checkpoint)['state_dict']
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {
        options.get('dtype', torch.float32)
    }
    assert weights.keys() == {name for name in model.state_dict() if '.asr.' not in name}
    host = model.backbone.layer1[0].bn2
    expected = (host.weight * host.asr.scale()).to(options.get('dtype', torch.float32))
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(weights['backbone.layer1.0.bn2.weight'], expected, rtol=4 * eps, atol=4 * eps)


USER_MODULE = """
from mmdet.models import ResNet
from mmdet.registry import MODELS
from torch import nn

import mmasr
from mmasr.attention import ATTENTIONS


class Tanh(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def weights(self, x):
        return x.tanh()


ATTENTIONS['Tanh'] = Tanh


@MODELS.register_module(force=True)
class WithUnused(ResNet):
    def __init__(self, unused, **kwargs):
        super().__init__(**kwargs)
        if 'ASR' in unused:
            self.extra = mmasr.attach(nn.BatchNorm2d(8), dict(type='SE'), sites='')
        if 'OREPA' in unused:
            self.conv = mmasr.attach(nn.Conv2d(8, 8, 3, padding=1, bias=False), dict(type='OREPA'), sites='')
"""


def files(folder):
    """Return the contents of all files of a folder, except those that Python compiled."""
    return {path: path.read_bytes() for path in folder.iterdir() if path.name != '__pycache__'}


@pytest.fixture
def user_checkpoint(tmp_path, monkeypatch):
    """Return a function that saves the checkpoint of a config that imports a user's module."""
    (tmp_path / 'user_module.py').write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(**backbone):
        config = without_asr(**backbone)
        config.custom_imports.imports = ['mmasr', 'user_module']
        importlib.import_module('user_module')
        return save(tmp_path / 'own.pth', config)[0]

    yield make
    sys.modules.pop('user_module', None)
    mmasr.attention.ATTENTIONS.pop('Tanh', None)


@pytest.mark.parametrize(
    ('backbone', 'trust', 'message'),
    [
        ({'type': 'WithUnused', 'unused': ['ASR']}, False, 'imports user_module, which was not run'),
        ({'type': 'WithUnused', 'unused': ['ASR']}, True, r'no layer uses the ASR of backbone\.extra, so it'),
        (
            {'type': 'WithUnused', 'unused': ['OREPA']},
            True,
            r'no layer uses the OREPA of backbone\.conv, so it',
        ),
        (
            {'type': 'WithUnused', 'unused': ['ASR', 'OREPA']},
            True,
            r'no layer uses the ASR or OREPA of backbone\.conv, backbone\.extra, so it',
        ),
        (
            {
                'type': 'mmdet.ResNet',
                'depth': 50,
                'plugins': [plugin('ASR', 'after_conv1', attention={'type': 'Tanh'}, psi=-1.0)],
            },
            True,
            r"backbone\.layer1\.0\.asr can't be folded: its scale is negative and it comes after a ReLU",
        ),
    ],
    ids=[
        *('an import without trust', 'an unused ASR', 'an unused OREPA', 'both unused'),
        'a negative scale before a ReLU',
    ],
)
def test_a_users_module_that_cannot_be_deployed_is_refused(
    user_checkpoint, tmp_path, backbone, trust, message
):
    path = user_checkpoint(**backbone)
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        reparameterize(path, trust_imports=trust)
    assert files(tmp_path) == before


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a checkpoint with ASR, which no test may change."""
    return save(tmp_path_factory.mktemp('trained') / 'good.pth', small_detector())[0]


@pytest.fixture
def good(trained, tmp_path):
    """Return a copy of the checkpoint, which a test may change."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.fixture
def weights(good, tmp_path):
    """Return the weights of the checkpoint without its config."""
    torch.save(load(good)['state_dict'], tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def edit(path, change):
    """Change the content of a checkpoint; return its path."""
    checkpoint = load(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def refused(folder, message, *args, **options):
    """Check that deploying is refused in one line, and that no file of the folder changes."""
    before = files(folder)
    with pytest.raises(InputError, match=message) as caught:
        reparameterize(*args, **options)
    assert '\n' not in str(caught.value)
    assert files(folder) == before


def test_a_missing_checkpoint_is_refused(tmp_path):
    refused(tmp_path, 'none.pth: No such file', tmp_path / 'none.pth')


def test_weights_without_a_config_are_refused(weights, tmp_path):
    refused(tmp_path, 'has no config in it; pass the one it was trained with as `config`', weights)


def test_a_missing_config_is_refused(weights, tmp_path):
    refused(tmp_path, 'none.py: no such config', weights, tmp_path / 'none.py')


def test_a_config_with_a_syntax_error_is_refused(weights, tmp_path):
    (tmp_path / 'broken.py').write_text('a = = 1')
    refused(tmp_path, 'broken.py: .*Syntax', weights, tmp_path / 'broken.py')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            lambda: small_detector(depth=34),
            r"config and weights don't match: missing: backbone\.layer1\.2\.conv1\.weight",
        ),
        (
            lambda: without_asr(type='mmdet.ResNet'),
            r"don't match: not in the model: backbone\.layer1\.0\.bn2\.asr",
        ),
    ],
    ids=['a deeper network', 'no ASR'],
)
def test_a_config_of_another_network_is_refused(weights, tmp_path, config, message):
    config().dump(tmp_path / 'other.py')
    refused(tmp_path, message, weights, tmp_path / 'other.py')


def test_a_network_without_reparameterization_is_refused(tmp_path):
    path, _ = save(tmp_path / 'plain.pth', without_asr(type='mmdet.ResNet'))
    refused(tmp_path, r'plain\.pth has no re-parameterization to fold', path)


def test_nan_and_inf_in_the_weights_are_refused(good, tmp_path):
    def change(checkpoint):
        checkpoint['state_dict']['backbone.layer1.0.bn2.asr.psi'][0, 3] = torch.nan
        checkpoint['state_dict']['neck.fpn_convs.0.conv.weight'][0] = torch.inf

    message = r'NaN or Inf in backbone\.layer1\.0\.bn2\.asr\.psi, neck\.fpn_convs\.0\.conv\.weight'
    refused(tmp_path, message, edit(good, change))


def test_a_weight_of_another_shape_is_refused(good, tmp_path):
    edit(good, lambda c: c['state_dict'].update({'backbone.conv1.weight': torch.zeros(3)}))
    refused(tmp_path, r'of another shape: backbone\.conv1\.weight', good)


#: Changes of the embedded config, and a part of the refusal.
ODD_CONFIGS = {
    'another config': (lambda cfg: 'a = 1', 'it has no model'),
    'an unknown type': (lambda cfg: cfg.replace('FPN', 'FQN'), "builds 'FQN'"),
    'an unknown argument': (lambda cfg: cfg.replace('num_outs', 'num_ins'), 'does not build'),
    'a number as the model': (lambda cfg: cfg + '\nmodel = 3', 'has no model'),
    'a number as the type': (lambda cfg: cfg + '\nmodel = dict(type=3)', "builds '?3"),
    'a number as the backbone': (
        lambda cfg: cfg + "\nmodel = dict(type='MaskRCNN', backbone=3)",
        'does not build',
    ),
    'a type that no registry has': (lambda cfg: cfg + "\nmodel = dict(type='ToyModel')", "builds 'ToyModel'"),
    'a number as the imports': (
        lambda cfg: cfg + '\ncustom_imports = 5',
        'not used: its custom_imports is not a dict with a list',
    ),
    'a number as an import': (
        lambda cfg: cfg + '\ncustom_imports = dict(imports=5)',
        'not used: its custom_imports is not a dict with a list',
    ),
    'a list as the scope': (lambda cfg: cfg + '\ndefault_scope = [1]', r'not used: it has the scope \[1\]'),
}


@pytest.mark.parametrize('name', ODD_CONFIGS)
def test_an_odd_config_is_refused(good, tmp_path, name):
    change, message = ODD_CONFIGS[name]
    edit(good, lambda c: c['meta'].update(cfg=change(c['meta']['cfg'])))
    refused(tmp_path, message, good)


@pytest.mark.parametrize(
    ('out', 'message'),
    [
        ('x.pt', r'must be named \*\.pth'),
        ('no/x.pth', "can't write here: No such file or directory"),
        ('/sys/x.pth', "can't write here: (Permission denied|Operation not permitted)"),
    ],
    ids=['another suffix', 'a missing folder', 'a read-only folder'],
)
def test_files_that_cannot_be_written_are_refused(good, tmp_path, out, message):
    refused(tmp_path, message, good, None, tmp_path / out)


@pytest.mark.parametrize('force', [False, True], ids=['without --force', '--force'])
def test_the_checkpoint_itself_is_not_overwritten(good, tmp_path, force):
    refused(tmp_path, 'already exists', good, None, good, force)


def test_a_full_disk_is_an_input_error_and_leaves_no_file(good, tmp_path):
    before = sorted(tmp_path.iterdir())
    with (
        full_disk(1_000_000),
        pytest.raises(InputError, match="can't write here: File too large; nothing was changed"),
    ):
        reparameterize(good)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    'write',
    [
        lambda config: 'model = dict()',
        lambda config: write_config({**config, 'custom_hooks': [{'type': 'os.system'}]}),
        lambda config: write_config({**config, 'default_scope': 'mmasr'}),
    ],
    ids=['less', 'more', 'another value'],
)
def test_a_config_that_reads_back_differently_is_not_deployed(good, tmp_path, monkeypatch, write):
    monkeypatch.setattr(reparam, 'write_config', write)
    refused(tmp_path, r'good\.pth: the deployed config does not read back as it was written', good)


@pytest.mark.parametrize('name', ['good_deploy.pth', 'good_deploy.py'])
def test_an_existing_file_stays_without_force(good, tmp_path, name):
    (tmp_path / name).write_text('mine')
    refused(tmp_path, rf'{re.escape(name)} already exists; pass `force`', good)


def test_force_does_not_replace_the_config_that_is_read(good, tmp_path):
    config = tmp_path / 'mine.py'
    small_detector().dump(config)
    before = config.read_bytes()
    with pytest.raises(InputError, match=r'mine\.py already exists'):
        reparameterize(good, config=config, out=tmp_path / 'mine.pth', force=True)
    assert config.read_bytes() == before
    assert not (tmp_path / 'mine.pth').exists()


def test_force_replaces_existing_files(good, tmp_path):
    for name in ('good_deploy.pth', 'good_deploy.py'):
        (tmp_path / name).write_text('mine')
    report = reparameterize(good, force=True)
    assert (report.checkpoint, report.config) == (tmp_path / 'good_deploy.pth', tmp_path / 'good_deploy.py')
    assert torch.equal(
        load(report.checkpoint)['state_dict']['backbone.conv1.weight'],
        load(good)['state_dict']['backbone.conv1.weight'],
    )


def test_a_deployed_checkpoint_is_not_deployed_again(good):
    deployed = reparameterize(good).checkpoint
    with pytest.raises(InputError, match=r'good_deploy\.pth is already deployed'):
        reparameterize(deployed)


def lose_a_scale(model, stay):
    """Fold a network, but one of its eight hosts with a wrong scale."""
    host = model.backbone.layer3[0].bn2
    host.asr.initial.copy_(host.asr.scale())
    return mmasr.fold(model)


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16], ids=['fp32', 'fp16', 'bf16']
)
def test_a_wrong_fold_is_seen_in_the_outputs_too_and_nothing_is_written(tmp_path, monkeypatch, dtype):
    """The table in test_mutations.py has other errors, which the layers or tensors may show first."""
    path, _ = save(tmp_path / 'a.pth', small_detector(), dtype=dtype)
    monkeypatch.setattr(reparam, 'fold_all', lose_a_scale)
    monkeypatch.setattr(reparam.TrainedLayers, 'check_tensors', lambda *_: None)
    message = 'a.pth: the folded network differs from the trained network: .*, more than 1e-04'
    with pytest.raises(InputError, match=message), torch.no_grad():
        reparameterize(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_tool_prints_its_report(good, tmp_path):
    result = run_tool('reparam.py', good, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in (
        'backbone.layer1.0.bn2',
        'hosts with SE',
        'parameters',
        'MiB',
        'relative (bound 1e-04)',
        'folded layers, compared one by one: at most',
        'the deployed config differs from the trained one in model.backbone.asr, model.backbone.type',
        'good_deploy.py',
    ):
        assert text in result.stdout


def test_the_tool_refuses_to_overwrite(good, tmp_path, refusal):
    (tmp_path / 'good_deploy.pth').write_text('mine')
    assert 'already exists' in refusal('reparam.py', good, cwd=tmp_path)


def change_config(change):
    return lambda checkpoint, proof: checkpoint['meta'].update(cfg=change(checkpoint['meta']['cfg'], proof))


#: Changes that would create the file when the checkpoint is unpickled, its config is executed, its module is
#: imported, or its network is built.
HOSTILE = {
    'pickle': lambda checkpoint, proof: checkpoint['meta'].update(x=Touch(proof)),
    'config': change_config(lambda cfg, proof: cfg + f"\nx = open({str(proof)!r}, 'w')"),
    'import': change_config(lambda cfg, proof: cfg.replace("'mmasr',", "'mmasr', 'attacker_module',")),
    'type': change_config(
        lambda cfg, proof: cfg.replace(
            "type='FPN'", f"type='mmengine.dump', obj=1, file={str(proof.with_suffix('.json'))!r}"
        )
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_in_a_hostile_checkpoint_runs(good, proof, tmp_path, refusal, name):
    edit(good, lambda c: HOSTILE[name](c, proof))
    before = files(tmp_path)
    assert refusal('reparam.py', good, cwd=tmp_path).startswith(f'error: {good}')
    assert files(tmp_path) == before


def test_trust_imports_runs_the_modules_of_a_checkpoint(good, proof, monkeypatch):
    edit(good, lambda c: HOSTILE['import'](c, proof))
    monkeypatch.setattr('sys.argv', ['reparam.py', str(good), '--trust-imports'])
    runpy.run_path(str(ROOT / 'tools/reparam.py'), run_name='__main__')
    assert proof.exists()
    assert good.with_name('good_deploy.pth').exists()
