"""Folding the mean of attention that was trained as ordinary attention, and measuring the cost."""

import json
import shutil

import pytest
import torch
from helpers import classifier, plugin, randomize_norms, run_tool, save_network, write_image_config
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmasr
from mmasr.deploy import calibrate
from mmasr.deploy.calibrate import Calibration, to_percentage_points
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.evaluation import evaluate
from mmasr.stripes import attention_modules


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return a folder with eight images in two classes."""
    folder = tmp_path_factory.mktemp('images')
    write_image_config(folder)
    return folder / 'data'


@pytest.fixture
def config(images):
    """Return a function that returns the config of a classifier of two classes, with data."""

    def make(backbone, channels):
        loader = {
            'batch_size': 4,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'dataset': {
                'type': 'CustomDataset',
                'data_root': str(images),
                'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}],
            },
        }
        config = classifier(backbone, channels)
        config.model.head.update(num_classes=2, topk=(1,))
        config.update(
            {
                'data_preprocessor': {'num_classes': 2, 'mean': [128] * 3, 'std': [64] * 3},
                'train_dataloader': loader,
                'test_dataloader': loader,
                'test_evaluator': {'type': 'Accuracy', 'topk': (1,)},
            }
        )
        return config

    return make


def timm_backbone(name):
    return {'type': 'TIMMBackbone', 'model_name': name}


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
    # No name of this network without attention is known, so the modules are removed.
    'another': (timm_backbone('regnety_002'), 368, ('type', 'mmasr.WithoutAttention')),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_a_backbone_becomes_a_stock_one(config, tmp_path, name):
    backbone, channels, (key, value) = BACKBONES[name]
    model = save_network(tmp_path / 'a.pth', config(backbone, channels), randomize_norms)
    report = reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=5))
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone[key] == value
    assert ('custom_imports' in deployed) == (name == 'another')
    assert len(report.attention.hosts) == len(attention_modules(model)) > 0
    assert not report.attention.staying
    assert max(d.relative for d in report.differences) <= 1e-5
    assert report.after.keys() == report.attention.before.keys() == {'accuracy/top1'}
    assert all(stripes.v.count == 5 for stripes in report.attention.stripes.values())
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(deployed.model)
    stock.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'], strict=True)
    assert not attention_modules(stock)
    assert not any(isinstance(module, mmasr.ASR) for module in stock.modules())


def test_attention_that_remains_in_a_deployed_network_is_folded(config, tmp_path):
    trained = config(BACKBONES['ASR + SE'][0], 256)
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    deployed = reparameterize(tmp_path / 'a.pth')
    with_data = Config.fromfile(deployed.config)  # a deployed config has no training data
    with_data.train_dataloader = trained.train_dataloader
    with_data.dump(tmp_path / 'with_data.py')
    report = reparameterize(deployed.checkpoint, tmp_path / 'with_data.py', calibration=Calibration(images=5))
    assert len(report.means) == len(report.attention.hosts) == 16
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'


def test_a_classifier_of_timm_becomes_a_stock_one(config, tmp_path):
    trained = config({}, 0)
    trained.model = {'type': 'TimmClassifier', 'model_name': 'seresnet18', 'num_classes': 2}
    save_network(tmp_path / 'a.pth', trained, randomize_norms)
    report = reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=5))
    assert Config.fromfile(report.config).model.to_dict() == {
        **trained.model.to_dict(),
        'model_name': 'resnet18',
    }


def fake_evaluation(metric):
    """Return an evaluation whose metric is a function of the number of remaining attention modules."""

    def evaluation(model, loader, evaluator, track, description):
        if not evaluator:
            return evaluate(model, loader, evaluator)
        return {'accuracy/top1': metric(len(attention_modules(model)))}

    return evaluation


@pytest.fixture
def seresnet(config, tmp_path, monkeypatch):
    """Return a checkpoint with eight attention modules; folding one of them costs one point."""
    monkeypatch.setattr(calibrate, 'evaluate', fake_evaluation(lambda left: 80 + left))
    save_network(tmp_path / 'a.pth', config(timm_backbone('seresnet18'), 512), randomize_norms)
    return tmp_path / 'a.pth'


@pytest.mark.parametrize('max_drop', [None, 8])
def test_all_modules_are_folded_if_max_drop_allows_it(seresnet, max_drop):
    attention = reparameterize(seresnet, calibration=Calibration(5, max_drop)).attention
    assert len(attention.hosts) == 8
    assert not attention.staying


@pytest.mark.parametrize(('max_drop', 'folded'), [(3.5, 3), (1, 1)])
def test_max_drop_folds_the_steadiest_modules(seresnet, max_drop, folded):
    report = reparameterize(seresnet, calibration=Calibration(5, max_drop))
    attention = report.attention
    assert len(attention.hosts) == folded
    assert len(attention.staying) == 8 - folded
    steadiness = {name: stripes.summary()['median_std'] for name, stripes in attention.stripes.items()}
    assert max(steadiness[name] for name in attention.hosts) <= min(
        steadiness[name] for name in attention.staying
    )
    assert set(attention.staying.values()) == {
        f'folding one more loses more than {max_drop} points of accuracy/top1'
    }
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmasr.WithoutAttention'
    assert deployed.custom_imports.imports == ['mmasr']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        left = attention_modules(MODELS.build(deployed.model))
    assert set(left) == set(attention.staying)


def test_nothing_is_written_if_even_the_steadiest_module_exceeds_max_drop(seresnet, tmp_path):
    with pytest.raises(
        InputError,
        match=r'folding even the steadiest module alone, backbone\.timm_model\.\S+, loses more than 0\.5',
    ):
        reparameterize(seresnet, calibration=Calibration(5, 0.5))
    assert list(tmp_path.iterdir()) == [seresnet]


@pytest.mark.parametrize(
    ('backbone', 'channels', 'message'),
    [
        (
            'efficientnet_b0',
            1280,
            r'no attention module can be folded: .* and 11 more; .* does not scale the input of the module',
        ),
        ('resnet18', 512, 'has no attention that depends on its input'),
    ],
    ids=['attention that must stay', 'no attention'],
)
def test_nothing_is_written_if_no_attention_can_be_folded(config, tmp_path, backbone, channels, message):
    save_network(tmp_path / 'a.pth', config(timm_backbone(backbone), channels), randomize_norms)
    with pytest.raises(InputError, match=message):
        reparameterize(tmp_path / 'a.pth', calibration=Calibration(5))
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
        reparameterize(tmp_path / 'a.pth', tmp_path / 'own.py', calibration=Calibration(images=5))
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
        reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=500))
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'data'}


def test_an_accuracy_is_already_in_percentage_points():
    assert to_percentage_points('accuracy/top1', 75.5) == 75.5


def test_a_mean_average_precision_is_a_fraction():
    assert to_percentage_points('coco/bbox_mAP', 0.375) == pytest.approx(37.5)


@pytest.fixture(scope='module')
def shapes_run(se_checkpoint, shapes):
    """Return the output of the tool that folds the attention of the shapes run, whose files are in ``se``."""
    result = run_tool('reparam.py', se_checkpoint[1], '--fold-attention', '--calibrate', 6, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tool_prints_the_folded_modules_and_the_cost(shapes_run):
    for text in (
        'mean of SE, into',
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


def test_calibrate_without_fold_attention_is_refused(se_checkpoint, shapes, refusal):
    assert refusal('reparam.py', se_checkpoint[1], '--out', 'se/other.pth', '--calibrate', 5, cwd=shapes) == (
        'error: --calibrate and --max-drop need --fold-attention'
    )


def test_one_image_for_the_mean_is_refused():
    with pytest.raises(InputError, match='`images` 1: the mean needs at least two images'):
        Calibration(images=1)


@pytest.mark.parametrize('drop', [-1, float('nan')])
def test_a_negative_max_drop_is_refused(drop):
    with pytest.raises(
        InputError, match=r'`max_drop` (-1|nan): give the points that may be lost, at least 0'
    ):
        Calibration(max_drop=drop)


def test_missing_data_is_reported_and_nothing_is_written(se_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r'train\.json does not exist; the embedded config needs it for its train_data'
    ):
        reparameterize(se_checkpoint[1], out='other.pth', calibration=Calibration())
    assert not list(tmp_path.iterdir())
