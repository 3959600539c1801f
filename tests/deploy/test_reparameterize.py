"""From a trained checkpoint to deployed files that stock MMDetection loads."""

import copy
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import SHAPES_CONFIG, run_tool
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


STOCK = """
import sys
sys.modules['mmasr'] = None
import numpy, torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
config = Config.fromfile(sys.argv[1])
model = init_detector(config, None, device='cpu')
model.load_state_dict(torch.load(sys.argv[2], weights_only=True)['state_dict'], strict=True)
image = numpy.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=numpy.uint8)
found = inference_detector(model, image).pred_instances
torch.save([found.bboxes, found.scores, found.masks], sys.argv[3])
assert not [name for name in sys.modules if name.startswith('mmasr.')]
"""


def test_stock_mmdetection_predicts_what_the_trained_network_does(checkpoint, tmp_path):
    report = reparameterize(checkpoint, out=tmp_path / 'deployed.pth')
    command = [sys.executable, '-c', STOCK, report.config, report.checkpoint, tmp_path / 'stock.pt']
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    bboxes, scores, masks = torch.load(tmp_path / 'stock.pt')

    import numpy as np
    from mmdet.apis import inference_detector, init_detector

    trained = init_detector(str(SHAPES_CONFIG), None, device='cpu')
    trained.load_state_dict(load(checkpoint)['state_dict'])
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    expected = inference_detector(trained, image).pred_instances
    assert len(expected) > 0
    # The product that is folded is the product that ran: 1e-4 of a pixel is what the convolutions may differ by.
    torch.testing.assert_close(bboxes, expected.bboxes, rtol=0, atol=1e-4 * 128)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
    assert (masks == expected.masks).float().mean() > 0.9999


def test_a_runners_checkpoint_becomes_a_pair_of_files(checkpoint, tmp_path):
    source = load(checkpoint)
    report = reparameterize(checkpoint, out=tmp_path / 'x.pth')
    assert (report.checkpoint, report.config) == (tmp_path / 'x.pth', tmp_path / 'x.py')
    assert len(report.folded) == 8
    assert max(d.relative for d in report.differences) <= 1e-4
    assert {d.output.split('.')[0] for d in report.differences} == {'features', 'rpn_head', 'roi_head'}
    assert report.parameters[0] - report.parameters[1] == sum(
        t.numel() for n, t in source['state_dict'].items() if '.asr.' in n and not n.endswith('initial')
    )

    deployed = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert set(deployed) == {'meta', 'state_dict'}  # no optimizer, no message hub, no second set of weights
    kept = ('epoch', 'dataset_meta', 'mmengine_version', 'seed', 'time', 'experiment_name', 'iter')
    assert {key: deployed['meta'][key] for key in kept} == {key: source['meta'][key] for key in kept}
    assert deployed['meta']['mmasr']['folded'] == {f'backbone.layer{i}.{j}.bn2': 'SE' for i in (1, 2, 3, 4) for j in (0, 1)}
    text = (tmp_path / 'x.py').read_text()
    assert text == deployed['meta']['cfg']
    config = Config.fromfile(tmp_path / 'x.py')
    assert 'custom_imports' not in config
    assert not [value for _, value in walk(config.to_dict()) if str(value).startswith('mmasr')]
    assert config.model.backbone.type == 'mmdet.ResNet'
    assert not list(tmp_path.glob('.*'))
    # With EMA the runner saves the averaged weights as state_dict, and those are the ones to deploy.
    assert torch.equal(deployed['state_dict']['backbone.conv1.weight'], source['state_dict']['backbone.conv1.weight'])
    assert not torch.equal(
        source['state_dict']['backbone.conv1.weight'], source['ema_state_dict']['module.backbone.conv1.weight']
    )


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
)
def test_backbones(tmp_path, backbone, expected):
    path, model = save(tmp_path / 'a.pth', small(**backbone))
    report = reparameterize(path)
    backbone = Config.fromfile(report.config).model.backbone
    assert backbone.type == expected
    assert 'asr' not in backbone
    delta = len(model.backbone.layer1[0].norm3.asr.attention) if model.backbone.depth >= 50 else 1
    assert set(report.folded.values()) == {' x '.join(['SE'] * delta)}


def test_plugins_go_and_attention_stays(tmp_path):
    asr = {'cfg': {'type': 'mmasr.ASR', 'attention': SE}, 'position': 'after_conv3'}
    kappa = {'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv3'}
    stock = {'type': 'mmdet.ResNet', 'depth': 50}

    config = small(**stock, plugins=[asr])
    del config.model.backbone['asr']
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    assert len(report.folded) == 16
    deployed = Config.fromfile(report.config)
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed

    report = reparameterize(save(tmp_path / 'b.pth', small(depth=50, plugins=[asr, kappa]))[0])
    assert len(report.folded) == 32
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert [p.cfg.type for p in deployed.model.backbone.plugins] == ['mmasr.SE']
    assert deployed.custom_imports.imports == ['mmasr']

    # mmdet's BasicBlock takes no plugins.
    report = reparameterize(save(tmp_path / 'c.pth', small(plugins=[{**kappa, 'position': 'after_conv2'}]))[0])
    assert Config.fromfile(report.config).model.backbone.type == 'mmasr.ASRResNet'


def test_plugins_alone_and_a_scope_of_its_own_deploy_to_the_stock_backbone(tmp_path):
    asr = {'cfg': {'type': 'mmasr.ASR', 'attention': SE}, 'position': 'after_conv2'}
    config = small(plugins=[asr])
    del config.model.backbone['asr']
    config.model.backbone.update(type='ASRResNet', _scope_='mmasr')
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert '_scope_' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_a_classifier(tmp_path):
    head = {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 64, 'loss': {'type': 'CrossEntropyLoss'}}
    backbone = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (3,), 'asr': {'attention': SE}}
    model = {'type': 'ImageClassifier', 'backbone': backbone, 'neck': {'type': 'GlobalAveragePooling'}, 'head': head}
    config = Config({'model': model, 'default_scope': 'mmpretrain', 'custom_imports': {'imports': ['mmasr']}})
    report = reparameterize(save(tmp_path / 'a.pth', config)[0])
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


def test_an_asr_that_nothing_uses_and_a_negative_scale_before_a_relu(tmp_path, monkeypatch):
    (tmp_path / 'own_modules.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_modules  # noqa: F401

    unused = small(type='WithUnused')
    unused.custom_imports.imports = ['mmasr', 'own_modules']
    del unused.model.backbone['asr']
    save(tmp_path / 'unused.pth', unused)
    plugin = {'cfg': {'type': 'mmasr.ASR', 'attention': {'type': 'Tanh'}, 'psi': -1.0}, 'position': 'after_conv1'}
    negative = small(type='mmdet.ResNet', depth=50, plugins=[plugin])
    negative.custom_imports.imports = ['mmasr', 'own_modules']
    del negative.model.backbone['asr']
    save(tmp_path / 'negative.pth', negative)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match='imports own_modules, which was not run'):
        reparameterize(tmp_path / 'unused.pth')
    with pytest.raises(InputError, match=r'no layer uses the ASR of backbone\.extra'):
        reparameterize(tmp_path / 'unused.pth', trust_imports=True)
    with pytest.raises(InputError, match=r"backbone\.layer1\.0\.asr can't be folded: it has a negative scale"):
        reparameterize(tmp_path / 'negative.pth', trust_imports=True)
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != '__pycache__'] == [p for p in before if p.name != '__pycache__']


@pytest.fixture
def good(tmp_path):
    return save(tmp_path / 'good.pth', small())[0]


def edit(path, change):
    checkpoint = load(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


ODD_CONFIGS = {
    '\nmodel = 3': 'has no model',
    '\nmodel = dict(type=3)': "builds '?3",
    "\nmodel = dict(type='MaskRCNN', backbone=3)": 'does not build',
    "\nmodel = dict(type='ToyModel')": 'builds|does not build|no ASR',
    '\ncustom_imports = 5': "can't be used",
    '\ncustom_imports = dict(imports=5)': "can't be used",
    '\ndefault_scope = [1]': "can't be used",
}


def test_refusals_write_nothing(good, tmp_path):
    plain = small(type='mmdet.ResNet')
    del plain.model.backbone['asr']
    plain.dump(tmp_path / 'plain.py')
    save(tmp_path / 'plain.pth', plain)
    (tmp_path / 'broken.py').write_text('a = = 1')
    (tmp_path / 'other.py').write_text(small(depth=34).pretty_text)
    weights = tmp_path / 'weights.pth'
    torch.save(load(good)['state_dict'], weights)

    def nan(checkpoint):
        checkpoint['state_dict']['backbone.layer1.0.bn2.asr.psi'][0, 3] = torch.nan
        checkpoint['state_dict']['neck.fpn_convs.0.conv.bias'][0] = torch.inf

    def changed(name, change):
        (tmp_path / name).write_bytes(good.read_bytes())
        return edit(tmp_path / name, change)

    cases = [
        ((tmp_path / 'none.pth',), 'none.pth: No such file'),
        ((weights,), 'has no config in it; give the one it was trained with with --config'),
        ((weights, tmp_path / 'none.py'), 'none.py: no such config'),
        ((weights, tmp_path / 'broken.py'), 'broken.py: .*Syntax'),
        ((weights, tmp_path / 'other.py'), r"config and weights don't fit: missing: backbone\.layer1\.2\.conv1\.weight"),
        ((weights, tmp_path / 'plain.py'), r"don't fit: not in the model: backbone\.layer1\.0\.bn2\.asr"),
        ((tmp_path / 'plain.pth',), 'has no ASR in it'),
        ((changed('nan.pth', nan),), r'NaN or Inf in backbone\.layer1\.0\.bn2\.asr\.psi, neck\.fpn_convs\.0\.conv\.bias'),
        (
            (changed('shape.pth', lambda c: c['state_dict'].update({'backbone.conv1.weight': torch.zeros(3)})),),
            r'of another shape: backbone\.conv1\.weight',
        ),
        ((changed('cfg.pth', lambda c: c['meta'].update(cfg='a = 1')),), 'the embedded config has no model'),
        ((changed('type.pth', lambda c: c['meta'].update(cfg=c['meta']['cfg'].replace('FPN', 'FQN'))),), "builds 'FQN'"),
        (
            (changed('args.pth', lambda c: c['meta'].update(cfg=c['meta']['cfg'].replace('num_outs', 'num_ins'))),),
            'does not build',
        ),
        *(
            ((changed(f'odd{i}.pth', lambda c, cfg=cfg: c['meta'].update(cfg=c['meta']['cfg'] + cfg)),), message)
            for i, (cfg, message) in enumerate(ODD_CONFIGS.items())
        ),
        ((good, None, tmp_path / 'x.pt'), r'must be named \*\.pth'),
        ((good, None, good), 'is there already'),
        ((good, None, good, True), 'is there already'),
        ((good, None, tmp_path / 'no' / 'x.pth'), "can't write here: No such file or directory"),
        ((good, None, Path('/sys/x.pth')), "can't write here: (Permission denied|Operation not permitted)"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for args, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            reparameterize(*args)
        assert '\n' not in str(caught.value), args
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk(good, tmp_path):
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(InputError, match="can't write here: File too large; nothing was changed"):
            reparameterize(good)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before


def test_a_key_that_breaks_out_of_the_written_config(good, tmp_path):
    """mmengine writes keys between quotes as they are; what comes out must still be data, for stock MMDetection runs it."""
    key = "x': open('proof', 'w'), 'y"
    edit(good, lambda c: c['meta'].update(cfg=c['meta']['cfg'] + f'\nextra = {{{key!r}: 1}}'))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match='not plain data'):
        reparameterize(good)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_stays_without_force(good, tmp_path):
    report = reparameterize(good)
    with pytest.raises(InputError, match=r'good_deploy\.pth is there already; pass --force'):
        reparameterize(good)
    report.checkpoint.unlink()
    with pytest.raises(InputError, match=r'good_deploy\.py is there already'):
        reparameterize(good)
    assert not report.checkpoint.exists()
    assert torch.equal(
        load(reparameterize(good, force=True).checkpoint)['state_dict']['backbone.conv1.weight'],
        load(good)['state_dict']['backbone.conv1.weight'],
    )
    with pytest.raises(InputError, match=r'good_deploy\.pth is deployed already'):
        reparameterize(report.checkpoint)


def lose_a_scale(model):
    """A fold that forgets one of eight hosts."""
    host = model.backbone.layer3[0].bn2
    host.asr.initial.copy_(host.asr.scale())
    return mmasr.fold(model)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_fold_is_found_and_nothing_is_written(tmp_path, monkeypatch, dtype):
    path, _ = save(tmp_path / 'a.pth', small(), dtype=dtype)
    monkeypatch.setattr(reparam, 'fold', lose_a_scale)
    with pytest.raises(InputError, match=r'differs from the trained one: .* nothing was written'), torch.no_grad():
        reparameterize(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_tool_prints_and_exits(good, tmp_path, refusal):
    result = run_tool('reparam.py', good, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ('backbone.layer1.0.bn2', 'hosts with ASR', 'parameters', 'MiB', 'relative (bound 1e-04)', 'good_deploy.py'):
        assert text in result.stdout
    assert 'is there already' in refusal('reparam.py', good, cwd=tmp_path)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_hostile_checkpoint_runs_nothing(good, tmp_path, refusal, monkeypatch):
    """Unpickling, config, custom import and registry of these would each create a file."""
    proof = tmp_path / 'proof'
    monkeypatch.syspath_prepend(tmp_path)
    evil = tmp_path / 'evil_module.py'
    evil.write_text(f'open({str(proof)!r}, "w")')
    config = load(good)['meta']['cfg']
    changes = {
        'pickle': lambda c: c['meta'].update(x=Touch(proof)),
        'config': lambda c: c['meta'].update(cfg=config + f"\nx = open({str(proof)!r}, 'w')"),
        'import': lambda c: c['meta'].update(cfg=config.replace("'mmasr',", "'mmasr', 'evil_module',")),
        'type': lambda c: c['meta'].update(
            cfg=config.replace("type='FPN'", f"type='mmengine.dump', obj=1, file={str(proof.with_suffix('.json'))!r}")
        ),
    }
    for name, change in changes.items():
        bad = tmp_path / f'{name}.pth'
        bad.write_bytes(good.read_bytes())
        edit(bad, change)
        files = sorted(p.name for p in tmp_path.iterdir())
        assert refusal('reparam.py', bad, cwd=tmp_path).startswith(f'error: {bad}'), name
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != '__pycache__') == files, name
    result = run_tool('reparam.py', tmp_path / 'import.pth', '--trust-imports', cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert proof.exists()  # so the import was there, and only trust ran it
