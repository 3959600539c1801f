"""Removing attention from checkpoints on the data of their configs, and measuring the cost."""

import json
import shutil
from collections import Counter

import pytest
import torch
from helpers import (
    ROOT,
    classifier,
    plugin,
    randomize_norms,
    run_tool,
    save_network,
    with_images,
)
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmasr
from mmasr.deploy import remove_attention
from mmasr.deploy.export import export
from mmasr.deploy.remove_attention import Removal
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.config import load_config
from mmasr.openmmlab.evaluation import to_percentage_points
from mmasr.stripes import attention_modules
from mmasr.stripes.gates import Switch


@pytest.fixture
def config(images):
    """Return a function that returns the config of a classifier of two classes, with data."""
    return lambda backbone, channels: with_images(classifier(backbone, channels), images)


def timm_backbone(name):
    return {'type': 'TIMMBackbone', 'model_name': name}


#: Everything that can be removed, without distillation.
ALL = Removal(images=5, epochs=0, tolerance=float('inf'))
SMALL = {'depth': 50, 'base_channels': 8}
BACKBONES = {
    'SEResNet': ({'type': 'SEResNet', **SMALL, 'stem_channels': 8, 'se_ratio': 8}, 256, ('type', 'ResNet')),
    'SEResNeXt': (
        {'type': 'mmpretrain.SEResNeXt', **SMALL, 'stem_channels': 8, 'groups': 4, 'width_per_group': 4},
        256,
        ('type', 'mmpretrain.ResNeXt'),
    ),
    'timm': (timm_backbone('seresnet18'), 512, ('model_name', 'resnet18')),
    'plugins': (
        {'type': 'mmdet.ResNet', **SMALL, 'out_indices': (3,), 'plugins': [plugin('SE')]},
        256,
        ('type', 'mmdet.ResNet'),
    ),
    'ASR + SE': (
        {
            'type': 'mmasr.ASRResNet',
            **SMALL,
            'out_indices': (3,),
            'asr': {'attention': {'type': 'ECA'}},
            'plugins': [plugin('ASR', attention={'type': 'SE'}), plugin('SE')],
        },
        256,
        ('type', 'mmdet.ResNet'),
    ),
    'RegNetY': (timm_backbone('regnety_002'), 368, ('se_ratio', 0)),
    'CSPNeXt': (
        {'type': 'mmdet.CSPNeXt', 'deepen_factor': 0.167, 'widen_factor': 0.125, 'out_indices': (4,)},
        128,
        ('channel_attention', False),
    ),
    'ASR + CSPNeXt': (
        {
            'type': 'mmasr.ASRBackbone',
            'backbone': {
                'type': 'mmdet.CSPNeXt',
                'deepen_factor': 0.167,
                'widen_factor': 0.125,
                'out_indices': (4,),
            },
            'asr': {'attention': {'type': 'SE'}},
        },
        128,
        ('channel_attention', False),
    ),
    'ASR + WithAttention': (
        {
            'type': 'mmasr.ASRBackbone',
            'backbone': {
                'type': 'mmasr.WithAttention',
                'network': timm_backbone('mobilenetv2_035'),
                'attention': {'type': 'SE'},
            },
            'asr': {'attention': {'type': 'SE'}},
        },
        1280,
        ('type', 'TIMMBackbone'),
    ),
    # No config builds these networks without attention, so the modules are removed.
    'MobileNetV3': ({'type': 'MobileNetV3', 'arch': 'small_050'}, 288, ('type', 'mmasr.WithoutAttention')),
    'EfficientNet': ({'type': 'EfficientNet', 'arch': 'b0'}, 1280, ('type', 'mmasr.WithoutAttention')),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_a_backbone_becomes_a_stock_one(config, tmp_path, name):
    backbone, channels, (key, value) = BACKBONES[name]
    save_network(tmp_path / 'a.pth', config(backbone, channels), randomize_norms)
    report = reparameterize(tmp_path / 'a.pth', removal=ALL)
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone[key] == value
    assert ('custom_imports' in deployed) == (value == 'mmasr.WithoutAttention')
    attention = report.attention.report
    assert attention.removed == list(attention.modules)
    assert max(d.relative for d in report.differences) <= 1e-5
    assert report.after.keys() == report.attention.before.keys() == {'accuracy/top1'}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(deployed.model)
    stock.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'], strict=True)
    assert not attention_modules(stock)
    assert not any(isinstance(module, mmasr.ASR) for module in stock.modules())


def test_attention_that_remains_in_a_deployed_network_is_removed(config, tmp_path):
    trained = config(BACKBONES['ASR + SE'][0], 256)
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    deployed = reparameterize(tmp_path / 'a.pth')
    with_data = Config.fromfile(deployed.config)  # a deployed config has no training data
    with_data.train_dataloader = trained.train_dataloader
    with_data.dump(tmp_path / 'with_data.py')
    report = reparameterize(deployed.checkpoint, tmp_path / 'with_data.py', removal=ALL)
    assert len(report.attention.report.removed) == 16
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'


def test_a_classifier_of_timm_becomes_a_stock_one(config, tmp_path):
    trained = config({}, 0)
    trained.model = {'type': 'TimmClassifier', 'model_name': 'seresnet18', 'num_classes': 2}
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    report = reparameterize(tmp_path / 'a.pth', removal=ALL)
    assert Config.fromfile(report.config).model.to_dict() == {
        **trained.model.to_dict(),
        'model_name': 'resnet18',
    }


def test_the_exported_network_has_no_operator_of_the_attention(config, tmp_path):
    onnx = pytest.importorskip('onnx')
    save_network(tmp_path / 'a.pth', config(timm_backbone('regnety_002'), 368), randomize_norms)
    deployed = reparameterize(tmp_path / 'a.pth', removal=ALL)
    counts = [
        Counter(node.op_type for node in onnx.load(export(path).path).graph.node)
        for path in (tmp_path / 'a.pth', deployed.checkpoint)
    ]
    attention = 'Sigmoid', 'Mul', 'ReduceMean'
    assert all(counts[0][operator] >= 13 for operator in attention)
    assert not any(counts[1][operator] for operator in attention)
    assert counts[1]['GlobalAveragePool'] == 1  # of the classifier


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_weights_keep_the_types_of_the_checkpoint(config, tmp_path, dtype):
    save_network(tmp_path / 'a.pth', config(timm_backbone('seresnet18'), 512), randomize_norms)
    content = torch.load(tmp_path / 'a.pth', weights_only=False)
    for name, tensor in content['state_dict'].items():
        if tensor.is_floating_point():
            content['state_dict'][name] = tensor.to(dtype) * (1 + torch.rand((), dtype=dtype) / 1e3)
    torch.save(content, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth', removal=ALL)
    written = torch.load(report.checkpoint, weights_only=True)['state_dict']
    assert {tensor.dtype for tensor in written.values() if tensor.is_floating_point()} == {dtype}
    # The first convolution is before all attention, so it is as it was.
    name = 'backbone.timm_model.conv1.weight'
    assert torch.equal(written[name], content['state_dict'][name])


def test_all_weights_may_be_distilled(config, tmp_path):
    attention = plugin('SE', 'after_conv2')
    # Eight images are enough for 48 constants.
    attention['stages'] = (True, False, False)
    backbone = {'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'plugins': [attention]}
    save_network(tmp_path / 'a.pth', config(backbone, 64), randomize_norms)
    options = Removal(images=8, epochs=1, weights=True, tolerance=float('inf'))
    report = reparameterize(tmp_path / 'a.pth', removal=options)
    assert len(report.attention.report.removed) == 3
    assert Config.fromfile(report.config).model.backbone.type == 'mmasr.ResNetCIFAR'


def test_attention_in_the_code_of_a_larger_module_stays(config, tmp_path):
    arch = {'depths': [1] * 4, 'channels': [8] * 4}
    trained = config({'type': 'ConvNeXt', 'arch': arch, 'use_grn': True, 'gap_before_final_norm': False}, 8)
    save_network(tmp_path / 'a.pth', trained)
    with pytest.raises(InputError, match='its product is in the code of GRN, and not in a module of its own'):
        reparameterize(tmp_path / 'a.pth', removal=ALL)


def fake_evaluation(metric):
    """Return an evaluation whose metric is a function of the number of remaining attention modules."""

    def evaluation(model, loader, evaluator, track, description=''):
        left = attention_modules(model)
        removed = [m for m in model.modules() if isinstance(m, Switch) and m.v is not None]
        return {'accuracy/top1': metric(len(left) - len(removed))}

    return evaluation


@pytest.fixture
def seresnet(config, tmp_path, monkeypatch):
    """Return a checkpoint with eight attention modules; removing one of them costs one point."""
    monkeypatch.setattr(remove_attention, 'evaluate', fake_evaluation(lambda left: 80 + left))
    save_network(tmp_path / 'a.pth', config(timm_backbone('seresnet18'), 512), randomize_norms)
    return tmp_path / 'a.pth'


@pytest.mark.parametrize(('max_drop', 'count'), [(8, 8), (3.5, 3), (1, 1)])
def test_max_drop_removes_the_modules_that_matter_least(seresnet, max_drop, count):
    report = reparameterize(seresnet, removal=Removal(5, 0, max_drop=max_drop))
    attention = report.attention.report
    removed, staying = attention.removed, attention.modules.keys() - attention.removed
    effects = {name: module.effect for name, module in attention.modules.items()}
    assert len(removed) == count
    assert max(effects[n] for n in removed) <= min((effects[n] for n in staying), default=float('inf'))
    assert {attention.modules[name].reason for name in staying} <= {'removing it too is not accepted'}
    deployed = Config.fromfile(report.config)
    if count == 8:
        assert deployed.model.backbone.model_name == 'resnet18'
        return
    assert deployed.model.backbone.type == 'mmasr.WithoutAttention'
    assert deployed.custom_imports.imports == ['mmasr']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert set(attention_modules(MODELS.build(deployed.model))) == set(staying)


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        ({'max_drop': 0.5}, r'loses more than 0\.5 points of accuracy/top1'),
        ({'tolerance': 0}, r'exceeds the tolerance of 0\.00%'),
    ],
    ids=['max_drop', 'tolerance'],
)
def test_nothing_is_written_if_even_the_least_important_module_exceeds_the_limit(
    seresnet, tmp_path, monkeypatch, options, problem
):
    monkeypatch.setattr('mmasr.stripes.fold_attention.change', lambda expected, found: 0.1)
    module = r'the attention module that matters least, backbone\.timm_model\.\S+,'
    with pytest.raises(InputError, match=f'removing even {module} {problem}'):
        reparameterize(seresnet, removal=Removal(5, 0, **options))
    assert list(tmp_path.iterdir()) == [seresnet]


def test_nothing_is_written_without_attention(config, tmp_path):
    save_network(tmp_path / 'a.pth', config(timm_backbone('resnet18'), 512), randomize_norms)
    with pytest.raises(InputError, match='ImageClassifier has no attention with one value per image and'):
        reparameterize(tmp_path / 'a.pth', removal=ALL)
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.pth']


@pytest.mark.parametrize(
    ('part', 'settings', 'message'),
    [
        ('test_evaluator', {'type': 'NoSuchMetric'}, 'evaluating failed: .*NoSuchMetric'),
        ('test_evaluator', {'topk': (3,)}, 'evaluating failed: '),
        ('test_dataloader', {'num_workers': -1}, "the config's data does not load: "),
        ('train_dataloader', {'dataset': 3}, 'no train_dataloader and test_dataloader'),
    ],
    ids=['an unknown metric', 'a metric that fails', 'odd settings', 'no dataset'],
)
def test_an_evaluation_that_fails_is_an_error_of_one_line(config, tmp_path, part, settings, message):
    trained = config(timm_backbone('seresnet18'), 512)
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    trained[part] = {**trained[part], **settings}
    trained.dump(tmp_path / 'own.py')
    with pytest.raises(InputError, match=message) as caught:
        reparameterize(tmp_path / 'a.pth', tmp_path / 'own.py', removal=ALL)
    assert '\n' not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'own.py'}


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named_and_nothing_is_written(config, images, tmp_path, workers):
    shutil.copytree(images, tmp_path / 'data')
    broken = next((tmp_path / 'data').rglob('*.png'))
    broken.write_bytes(b'no image')
    trained = config(timm_backbone('seresnet18'), 512)
    for part in (trained.train_dataloader, trained.test_dataloader):
        part.dataset.data_root, part.num_workers = str(tmp_path / 'data'), workers
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    with pytest.raises(InputError, match=f"^{broken} can't be read as an image: "):
        reparameterize(tmp_path / 'a.pth', removal=Removal(images=500))
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'data'}


def test_an_accuracy_is_already_in_percentage_points():
    assert to_percentage_points('accuracy/top1', 75.5) == 75.5


def test_a_mean_intersection_over_union_is_already_in_percentage_points():
    assert to_percentage_points('mIoU', 43.2) == 43.2


def test_a_mean_average_precision_is_a_fraction():
    assert to_percentage_points('coco/bbox_mAP', 0.375) == pytest.approx(37.5)


@pytest.fixture(scope='module')
def shapes_run(se_checkpoint, shapes):
    """Return the output of the tool that folds the attention of the shapes run, whose files are in ``se``."""
    options = ['--calibrate', 6, '--distill', 0, '--tolerance', 'inf']
    result = run_tool('reparam.py', se_checkpoint[1], '--fold-attention', *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tool_prints_the_removed_modules_and_the_cost(shapes_run):
    for text in (
        'constants in',
        'relative to the variance on 1 held-out inputs',
        'modules with attention',
        'median std',
        'coco/bbox_mAP',
        'before',
        'after',
    ):
        assert text in shapes_run


@pytest.mark.usefixtures('shapes_run')
def test_the_tool_writes_a_stock_detector(shapes):
    deployed = Config.fromfile(shapes / 'se/epoch_2_deploy.py')
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_the_printed_metrics_are_those_of_the_deployed_files(shapes_run, shapes):
    metrics = run_tool(
        'test.py', 'se/epoch_2_deploy.py', 'se/epoch_2_deploy.pth', '--work-dir', 'se_test', cwd=shapes
    )
    assert metrics.returncode == 0, metrics.stderr
    (file,) = (shapes / 'se_test').glob('*/*.json')
    assert f'{json.loads(file.read_text())["coco/segm_mAP"]:.4f}' in shapes_run


def test_a_segmentor_becomes_a_stock_one(shapes, monkeypatch):
    pytest.importorskip('mmseg', reason='MMSegmentation is an optional extra')
    monkeypatch.chdir(shapes)
    config = load_config(ROOT / 'configs/shapes/fpn_r18_se.py')
    save_network(shapes / 'fpn.pth', config, randomize_norms)
    report = reparameterize('fpn.pth', removal=Removal(images=4, epochs=1, tolerance=float('inf')))
    assert len(report.attention.report.removed) == 8
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'
    assert report.after.keys() == {'aAcc', 'mIoU', 'mAcc'}


@pytest.mark.parametrize(
    'option',
    [['--calibrate', 5], ['--distill'], ['--distill-weights'], ['--tolerance', 1], ['--max-drop', 1]],
)
def test_options_without_fold_attention_are_refused(se_checkpoint, shapes, refusal, option):
    assert refusal('reparam.py', se_checkpoint[1], '--out', 'se/other.pth', *option, cwd=shapes) == (
        f'error: {option[0]} needs --fold-attention'
    )


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'images': 1}, '`images` 1: use a few hundred, at least two'),
        ({'epochs': -1}, '`epochs` -1: at least 0'),
        ({'max_drop': -1}, '`max_drop` -1: at least 0'),
        ({'max_drop': float('nan')}, '`max_drop` nan: at least 0'),
        ({'tolerance': -0.1}, '`tolerance` -0.1: at least 0'),
    ],
)
def test_unusable_options_are_refused(option, message):
    with pytest.raises(InputError, match=f'^{message}$'):
        Removal(**option)


def test_missing_data_is_reported_and_nothing_is_written(se_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r'train\.json does not exist; the embedded config needs it for its calibration_data'
    ):
        reparameterize(se_checkpoint[1], out='other.pth', removal=Removal())
    assert not list(tmp_path.iterdir())
