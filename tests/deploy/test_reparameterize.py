"""From a trained checkpoint to deployed files that stock MMDetection loads."""

import copy
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SHAPES_CONFIG, Touch, classifier, full_disk, plugin, run_tool, stock_predictions
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.deploy import reparameterize as reparam
from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.config import walk

SE = {'type': 'SE'}


def load(path):
    return torch.load(path, weights_only=False)


def small(**backbone):
    """A small Mask R-CNN's config, without data."""
    config = Config.fromfile(SHAPES_CONFIG)
    config = Config({key: config[key] for key in ('model', 'default_scope', 'custom_imports')})
    config.model.backbone.update({'base_channels': 8, **backbone})
    deep = backbone.get('depth', 18) >= 50
    config.model.neck.in_channels = [8 * 2**i * (4 if deep else 1) for i in range(4)]
    return config


def save(path, config, embed=True, **options):
    """Save a checkpoint of a config's model, every ASR with a scale of its own. Returns its path and the model."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(copy.deepcopy(config.model))
    for module in model.modules():
        if isinstance(module, mmasr.ASR):
            nn.init.normal_(module.psi)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state_dict = {options.get('prefix', '') + n: t for n, t in model.state_dict().items()}
    if dtype := options.get('dtype'):
        state_dict = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state_dict.items()}
    meta = {'cfg': config.pretty_text} if embed else {}
    torch.save({'meta': {**meta, 'epoch': 12, 'dataset_meta': {'classes': ('a', 'b')}}, 'state_dict': state_dict}, path)
    return path, model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('deployed')


@pytest.fixture(scope='module')
def deployed(checkpoint, folder):
    """The report of deploying the checkpoint that a runner left."""
    return reparameterize(checkpoint, out=folder / 'x.pth')


# With the set of packages that the suite runs with, and with the other one: the Makefile makes both.
OTHER_SET = ROOT / ('.venv' if Path(sys.prefix).name == '.venv-upstream' else '.venv-upstream') / 'bin/python'
IN_OTHER_SET = pytest.param(OTHER_SET, marks=pytest.mark.skipif(not OTHER_SET.exists(), reason=f'there is no {OTHER_SET}'))


@pytest.mark.parametrize('python', [None, IN_OTHER_SET], ids=['this set', 'the other set'])
def test_stock_mmdetection_predicts_what_the_trained_network_does(checkpoint, deployed, tmp_path, python):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    ((bboxes, scores, labels, masks),) = stock_predictions(deployed.config, deployed.checkpoint, [image], tmp_path, python)

    trained = init_detector(str(SHAPES_CONFIG), None, device='cpu')
    trained.load_state_dict(load(checkpoint)['state_dict'])
    expected = inference_detector(trained, image).pred_instances
    assert len(expected) > 0
    # The product that is folded is the product that ran: 1e-4 of a pixel is what the convolutions may differ by.
    torch.testing.assert_close(bboxes, expected.bboxes, rtol=0, atol=1e-4 * 128)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
    assert torch.equal(labels, expected.labels)
    assert (masks == expected.masks).float().mean() > 0.9999


def test_the_report_of_a_runners_checkpoint(checkpoint, deployed):
    assert len(deployed.folded) == 8
    assert max(d.relative for d in deployed.differences) <= 1e-4
    assert {d.output.split('.')[0] for d in deployed.differences} == {'features', 'rpn_head', 'roi_head'}
    assert deployed.parameters[0] - deployed.parameters[1] == sum(
        t.numel() for n, t in load(checkpoint)['state_dict'].items() if '.asr.' in n and not n.endswith('initial')
    )


def test_a_runners_checkpoint_becomes_a_pair_of_files(deployed, folder):
    assert (deployed.checkpoint, deployed.config) == (folder / 'x.pth', folder / 'x.py')
    assert sorted(folder.iterdir()) == [folder / 'x.pth', folder / 'x.py']


def test_a_deployed_checkpoint_has_weights_and_where_they_come_from(checkpoint, deployed):
    found, source = torch.load(deployed.checkpoint, weights_only=True), load(checkpoint)
    assert set(found) == {'meta', 'state_dict'}  # no optimizer, no message hub, no second set of weights
    kept = ('epoch', 'dataset_meta', 'mmengine_version', 'seed', 'time', 'experiment_name', 'iter')
    assert {key: found['meta'][key] for key in kept} == {key: source['meta'][key] for key in kept}
    assert found['meta']['mmasr']['folded'] == {f'backbone.layer{i}.{j}.bn2': 'SE' for i in (1, 2, 3, 4) for j in (0, 1)}
    assert found['meta']['cfg'] == deployed.config.read_text()


def test_a_deployed_config_is_stock_mmdetections(deployed):
    config = Config.fromfile(deployed.config)
    assert 'custom_imports' not in config
    assert not [value for _, value in walk(config.to_dict()) if str(value).startswith('mmasr')]
    assert config.model.backbone.type == 'mmdet.ResNet'


def test_the_averaged_weights_are_deployed(checkpoint, deployed):
    """With EMA the runner saves them as state_dict."""
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
def test_kinds_of_weights(tmp_path, options, bound, embed):
    config = small()
    path, model = save(tmp_path / 'a.pth', config, embed, **options)
    config_file = None
    if not embed:
        config_file = tmp_path / 'config.py'
        config.dump(config_file)
        torch.save(load(path)['state_dict'], path)
    report = reparameterize(path, config=config_file)
    assert report.checkpoint == tmp_path / 'a_deploy.pth'
    assert report.bound == bound
    weights = load(report.checkpoint)['state_dict']
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {options.get('dtype', torch.float32)}
    assert weights.keys() == {name for name in model.state_dict() if '.asr.' not in name}
    host = model.backbone.layer1[0].bn2
    expected = (host.weight * host.asr.scale()).to(options.get('dtype', torch.float32))
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(weights['backbone.layer1.0.bn2.weight'], expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        ({'depth': 50, 'asr': {'attention': SE, 'delta': 2, 'init_identity': True}}, 'mmdet.ResNet'),
        ({'type': 'mmasr.ASRResNetV1d', 'norm_cfg': {'type': 'GN', 'num_groups': 4}}, 'mmdet.ResNetV1d'),
        (
            {'type': 'mmasr.ASRResNeXt', 'depth': 50, 'groups': 4, 'base_width': 4, 'norm_cfg': {'type': 'SyncBN'}},
            'mmdet.ResNeXt',
        ),
    ],
    ids=['ResNet', 'ResNetV1d', 'ResNeXt'],
)
def test_backbones(tmp_path, backbone, expected):
    path, model = save(tmp_path / 'a.pth', small(**backbone))
    report = reparameterize(path)
    backbone = Config.fromfile(report.config).model.backbone
    assert backbone.type == expected
    assert 'asr' not in backbone
    delta = len(model.backbone.layer1[0].norm3.asr.attention) if model.backbone.depth >= 50 else 1
    assert set(report.folded.values()) == {' x '.join(['SE'] * delta)}


def without_asr(**backbone):
    """As the function small, but without the ASR of the backbone itself."""
    config = small(**backbone)
    del config.model.backbone['asr']
    return config


def test_plugins_deploy_to_the_stock_backbone(tmp_path):
    config = without_asr(type='mmdet.ResNet', depth=50, plugins=[plugin('ASR', attention=SE)])
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    assert len(report.folded) == 16
    deployed = Config.fromfile(report.config)
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_plugins_go_and_attention_stays(tmp_path):
    config = small(depth=50, plugins=[plugin('ASR', attention=SE), plugin('SE')])
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    assert len(report.folded) == 32
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert [p.cfg.type for p in deployed.model.backbone.plugins] == ['mmasr.SE']
    assert deployed.custom_imports.imports == ['mmasr']


def test_attention_in_basic_blocks_keeps_our_backbone(tmp_path):
    """mmdet's BasicBlock takes no plugins."""
    report = reparameterize(save(tmp_path / 'a.pth', small(plugins=[plugin('SE', 'after_conv2')]))[0])
    assert Config.fromfile(report.config).model.backbone.type == 'mmasr.ASRResNet'


def test_plugins_alone_and_a_scope_of_its_own_deploy_to_the_stock_backbone(tmp_path):
    config = without_asr(plugins=[plugin('ASR', 'after_conv2', attention=SE)])
    config.model.backbone.update(type='ASRResNet', _scope_='mmasr')
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert '_scope_' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_a_classifier(tmp_path):
    backbone = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (3,), 'asr': {'attention': SE}}
    report = reparameterize(save(tmp_path / 'a.pth', classifier(backbone, 64))[0])
    assert [d.output for d in report.differences] == ['output']
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'


def test_any_backbone(tmp_path):
    inner = {'type': 'mmpretrain.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8, 'out_indices': (0, 1, 2, 3)}
    config = small()
    config.model.backbone = {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'asr': {'attention': {'type': 'ECA'}}}
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.to_dict() == inner
    assert 'custom_imports' not in deployed


def test_no_download_remains():
    config = small(init_cfg={'type': 'Pretrained', 'checkpoint': 'torchvision://resnet18'})
    config.model.neck.init_cfg = {'type': 'Xavier', 'layer': 'Conv2d'}
    config.model.rpn_head.pretrained = True
    config.custom_imports.imports = ['mmasr', 'mmpretrain.models']
    deployed = deployed_config(config)
    assert 'init_cfg' not in deployed.model.backbone
    assert deployed.model.neck.init_cfg.type == 'Xavier'
    assert 'pretrained' not in deployed.model.rpn_head
    assert deployed.custom_imports.imports == ['mmpretrain.models']
    assert config.model.backbone.type == 'mmasr.ASRResNet'  # the trained network's config is as it was


OWN = """
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
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.extra = mmasr.attach(nn.BatchNorm2d(8), dict(type='SE'), sites='')
"""


def files(folder):
    """What is in a folder, but for what Python compiled."""
    return {path: path.read_bytes() for path in folder.iterdir() if path.name != '__pycache__'}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes the checkpoint of a config that imports a module of its own."""
    (tmp_path / 'own_modules.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def make(**backbone):
        config = without_asr(**backbone)
        config.custom_imports.imports = ['mmasr', 'own_modules']
        importlib.import_module('own_modules')
        return save(tmp_path / 'own.pth', config)[0]

    yield make
    sys.modules.pop('own_modules', None)
    mmasr.attention.ATTENTIONS.pop('Tanh', None)


@pytest.mark.parametrize(
    ('backbone', 'trust', 'message'),
    [
        ({'type': 'WithUnused'}, False, 'imports own_modules, which was not run'),
        ({'type': 'WithUnused'}, True, r'no layer uses the ASR of backbone\.extra'),
        (
            {
                'type': 'mmdet.ResNet',
                'depth': 50,
                'plugins': [plugin('ASR', 'after_conv1', attention={'type': 'Tanh'}, psi=-1.0)],
            },
            True,
            r"backbone\.layer1\.0\.asr can't be folded: it has a negative scale",
        ),
    ],
    ids=['an import without trust', 'an ASR that nothing uses', 'a negative scale before a ReLU'],
)
def test_modules_of_ones_own_that_cannot_be_deployed(own, tmp_path, backbone, trust, message):
    path = own(**backbone)
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        reparameterize(path, trust_imports=trust)
    assert files(tmp_path) == before


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint with ASR, not to be changed."""
    return save(tmp_path_factory.mktemp('trained') / 'good.pth', small())[0]


@pytest.fixture
def good(trained, tmp_path):
    """A copy of it to work with."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.fixture
def weights(good, tmp_path):
    """Its weights alone."""
    torch.save(load(good)['state_dict'], tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def edit(path, change):
    checkpoint = load(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def refused(folder, message, *args, **options):
    """Check that there is no deploying this: that is said in one line, and no file of the folder changes."""
    before = files(folder)
    with pytest.raises(InputError, match=message) as caught:
        reparameterize(*args, **options)
    assert '\n' not in str(caught.value)
    assert files(folder) == before


def test_a_missing_checkpoint_is_refused(tmp_path):
    refused(tmp_path, 'none.pth: No such file', tmp_path / 'none.pth')


def test_weights_without_a_config_are_refused(weights, tmp_path):
    refused(tmp_path, 'has no config in it; give the one it was trained with with `config`', weights)


def test_a_missing_config_is_refused(weights, tmp_path):
    refused(tmp_path, 'none.py: no such config', weights, tmp_path / 'none.py')


def test_a_config_with_a_syntax_error_is_refused(weights, tmp_path):
    (tmp_path / 'broken.py').write_text('a = = 1')
    refused(tmp_path, 'broken.py: .*Syntax', weights, tmp_path / 'broken.py')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (lambda: small(depth=34), r"config and weights don't fit: missing: backbone\.layer1\.2\.conv1\.weight"),
        (lambda: without_asr(type='mmdet.ResNet'), r"don't fit: not in the model: backbone\.layer1\.0\.bn2\.asr"),
    ],
    ids=['a deeper network', 'no ASR'],
)
def test_a_config_of_another_network_is_refused(weights, tmp_path, config, message):
    config().dump(tmp_path / 'other.py')
    refused(tmp_path, message, weights, tmp_path / 'other.py')


def test_a_network_without_asr_is_refused(tmp_path):
    path, _ = save(tmp_path / 'plain.pth', without_asr(type='mmdet.ResNet'))
    refused(tmp_path, 'has no ASR in it', path)


def test_nan_and_inf_in_the_weights_are_refused(good, tmp_path):
    def change(checkpoint):
        checkpoint['state_dict']['backbone.layer1.0.bn2.asr.psi'][0, 3] = torch.nan
        checkpoint['state_dict']['neck.fpn_convs.0.conv.weight'][0] = torch.inf

    message = r'NaN or Inf in backbone\.layer1\.0\.bn2\.asr\.psi, neck\.fpn_convs\.0\.conv\.weight'
    refused(tmp_path, message, edit(good, change))


def test_a_weight_of_another_shape_is_refused(good, tmp_path):
    edit(good, lambda c: c['state_dict'].update({'backbone.conv1.weight': torch.zeros(3)}))
    refused(tmp_path, r'of another shape: backbone\.conv1\.weight', good)


# How the embedded config is changed, and what is said about that.
ODD_CONFIGS = {
    'another config': (lambda cfg: 'a = 1', 'it has no model'),
    'an unknown type': (lambda cfg: cfg.replace('FPN', 'FQN'), "builds 'FQN'"),
    'an unknown argument': (lambda cfg: cfg.replace('num_outs', 'num_ins'), 'does not build'),
    'a number as the model': (lambda cfg: cfg + '\nmodel = 3', 'has no model'),
    'a number as the type': (lambda cfg: cfg + '\nmodel = dict(type=3)', "builds '?3"),
    'a number as the backbone': (lambda cfg: cfg + "\nmodel = dict(type='MaskRCNN', backbone=3)", 'does not build'),
    'a toy': (lambda cfg: cfg + "\nmodel = dict(type='ToyModel')", "builds 'ToyModel'"),
    'a number as the imports': (lambda cfg: cfg + '\ncustom_imports = 5', "can't be used"),
    'a number as an import': (lambda cfg: cfg + '\ncustom_imports = dict(imports=5)', "can't be used"),
    'a list as the scope': (lambda cfg: cfg + '\ndefault_scope = [1]', "can't be used"),
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
    refused(tmp_path, 'is there already', good, None, good, force)


def test_a_full_disk(good, tmp_path):
    before = sorted(tmp_path.iterdir())
    with full_disk(1_000_000), pytest.raises(InputError, match="can't write here: File too large; nothing was changed"):
        reparameterize(good)
    assert sorted(tmp_path.iterdir()) == before


def test_a_config_that_reads_back_otherwise_is_not_deployed(good, tmp_path, monkeypatch):
    monkeypatch.setattr(reparam, 'write_config', lambda config: 'model = dict()')
    refused(tmp_path, 'reads back otherwise', good)


@pytest.mark.parametrize('name', ['good_deploy.pth', 'good_deploy.py'])
def test_what_is_there_stays_without_force(good, tmp_path, name):
    (tmp_path / name).write_text('mine')
    refused(tmp_path, rf'{re.escape(name)} is there already; pass `force`', good)


def test_force_overwrites(good, tmp_path):
    for name in ('good_deploy.pth', 'good_deploy.py'):
        (tmp_path / name).write_text('mine')
    report = reparameterize(good, force=True)
    assert (report.checkpoint, report.config) == (tmp_path / 'good_deploy.pth', tmp_path / 'good_deploy.py')
    assert torch.equal(
        load(report.checkpoint)['state_dict']['backbone.conv1.weight'], load(good)['state_dict']['backbone.conv1.weight']
    )


def test_what_is_deployed_is_not_deployed_again(good):
    deployed = reparameterize(good).checkpoint
    with pytest.raises(InputError, match=r'good_deploy\.pth is deployed already'):
        reparameterize(deployed)


def lose_a_scale(model, stay):
    """A fold that forgets one of eight hosts."""
    host = model.backbone.layer3[0].bn2
    host.asr.initial.copy_(host.asr.scale())
    return mmasr.fold(model)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=['fp32', 'fp16', 'bf16'])
def test_a_wrong_fold_is_found_and_nothing_is_written(tmp_path, monkeypatch, dtype):
    path, _ = save(tmp_path / 'a.pth', small(), dtype=dtype)
    monkeypatch.setattr(reparam, 'fold', lose_a_scale)
    with pytest.raises(InputError, match=r'differs from the trained one: .* nothing was written'), torch.no_grad():
        reparameterize(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_tool_prints_what_it_did(good, tmp_path):
    result = run_tool('reparam.py', good, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ('backbone.layer1.0.bn2', 'hosts with SE', 'parameters', 'MiB', 'relative (bound 1e-04)', 'good_deploy.py'):
        assert text in result.stdout


def test_the_tool_refuses_to_overwrite(good, tmp_path, refusal):
    (tmp_path / 'good_deploy.pth').write_text('mine')
    assert 'is there already' in refusal('reparam.py', good, cwd=tmp_path)


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """The file that importing the module evil_module creates."""
    proof = tmp_path / 'proof'
    (tmp_path / 'evil_module.py').write_text(f'open({str(proof)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    return proof


def change_config(change):
    return lambda checkpoint, proof: checkpoint['meta'].update(cfg=change(checkpoint['meta']['cfg'], proof))


#: What would create the file while a checkpoint is unpickled, its config run, its module imported, its network built.
HOSTILE = {
    'pickle': lambda checkpoint, proof: checkpoint['meta'].update(x=Touch(proof)),
    'config': change_config(lambda cfg, proof: cfg + f"\nx = open({str(proof)!r}, 'w')"),
    'import': change_config(lambda cfg, proof: cfg.replace("'mmasr',", "'mmasr', 'evil_module',")),
    'type': change_config(
        lambda cfg, proof: cfg.replace("type='FPN'", f"type='mmengine.dump', obj=1, file={str(proof.with_suffix('.json'))!r}")
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_checkpoint_runs_nothing(good, proof, tmp_path, refusal, name):
    edit(good, lambda c: HOSTILE[name](c, proof))
    before = files(tmp_path)
    assert refusal('reparam.py', good, cwd=tmp_path).startswith(f'error: {good}')
    assert files(tmp_path) == before


def test_trust_imports_runs_what_a_checkpoint_imports(good, proof, tmp_path):
    edit(good, lambda c: HOSTILE['import'](c, proof))
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, ROOT / 'tools/reparam.py', good, '--trust-imports']
    environment = {**os.environ, 'PYTHONPATH': paths}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert proof.exists()
