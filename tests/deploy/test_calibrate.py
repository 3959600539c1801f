"""Folding attention that was trained as ordinary attention."""

import json
import shutil

import pytest
import timm
import torch
from helpers import classifier, plugin, randomize, run_tool, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import MobileNetV3, SEResNet
from timm.models.byobnet import RepVggBlock
from torch import nn

import mmasr
from mmasr.deploy import calibrate
from mmasr.deploy.calibrate import Calibration, points
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.evaluation import evaluate
from mmasr.stripes import Observer, attention_modules
from mmasr.stripes.mean_fold import Constant, find_hosts, fold_means, replaced

X = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def ready(network):
    """Statistics and weights that a fold could get wrong, in eval mode; attention whose values differ."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                nn.init.uniform_(tensor, low, high)
    network.eval()
    return network


def last(output):
    return output[-1] if isinstance(output, tuple | list) else output


def fold_all(network, x=X):
    """Fold what can be folded; returns outputs with attention, with its mean in its place, folded, and what stays and why."""
    with Observer(network) as observer, torch.no_grad():
        trained = last(network(x))
    means = {name: stripes.v.mean.float() for name, stripes in observer.stripes.items()}
    hosts, staying = find_hosts(network, means, lambda: network(x[:1]))
    with torch.no_grad():
        with replaced(network, {name: Constant(means[name]) for name in hosts}):
            expected = last(network(x))
        assert torch.equal(last(network(x)), trained)  # the attention is back in its place
        mmasr.fold(network)
        fold_means(network, means, hosts)
        return trained, expected, last(network(x)), hosts, staying


NETWORKS = {
    'mmpretrain SEResNet': (lambda: SEResNet(50, base_channels=16, stem_channels=16), 16, 0),
    'timm seresnet18': (lambda: timm.create_model('seresnet18', num_classes=10), 8, 0),
    'timm ecaresnet26t': (lambda: timm.create_model('ecaresnet26t', num_classes=10), 8, 0),
    'timm seresnet18, features': (lambda: timm.create_model('seresnet18', features_only=True), 8, 0),
    # Through a ReLU; the rest comes after a Hardswish.
    'mmpretrain MobileNetV3': (lambda: MobileNetV3('large'), 3, 5),
    # BatchNorm and ReLU in one layer, which scales; BatchNorm and SiLU in one layer, which does not.
    'timm regnety': (lambda: timm.create_model('regnety_002', num_classes=10), 13, 0),
    'timm efficientnet': (lambda: timm.create_model('efficientnet_b0', num_classes=10), 0, 16),
    # ASR in the host that the attention follows.
    'ASR + SE': (lambda: mmasr.attach(timm.create_model('seresnet18', num_classes=10), {'type': 'ECA'}), 8, 0),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_folded_is_replaced_by_the_mean(name):
    make, count, others = NETWORKS[name]
    network = ready(make())
    trained, expected, folded, hosts, staying = fold_all(network)
    assert (len(hosts), len(staying)) == (count, others)
    assert len(attention_modules(network)) == others
    assert not any(isinstance(module, mmasr.ASR) for module in network.modules())
    # Rounding of the products, added up over the layers.
    assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()
    if count > 3:
        assert (trained - expected).abs().max() > 1e-4 * expected.abs().max()  # the values did depend on the image


class Net(nn.Module):
    """A block of one's own around one attention module."""

    def __init__(self, attention, forward, **layers):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.se = attention
        self.way = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.way(self, x)


def se():
    return randomize(mmasr.SE(8, ratio=2))


def both_norms(net, x):
    return net.se(net.norm(net.conv(x))) + net.se(net.norm2(net.conv(x)))


def norm_elsewhere(net, x):
    return net.se(net.norm(net.conv(x))) + net.norm(net.conv(x + 1))


def two_modules(net, x):
    y = net.norm(net.conv(x))
    return net.se(y) + net.eca(y)


def branch(net, x):
    y = net.norm(net.conv(x))
    return net.se(y) + net.relu(y)


STAYING = {
    'CBAM': (Net(mmasr.CBAM(8, ratio=2), lambda n, x: n.se(n.norm(n.conv(x)))), 'it does more than multiply'),
    'a sum': (Net(se(), lambda n, x: n.se(n.norm(n.conv(x)) + 1)), 'does not come straight from a layer'),
    'pooling': (
        Net(se(), lambda n, x: n.se(n.pool(n.norm(n.conv(x)))), pool=nn.MaxPool2d(2)),
        r'comes from pool \(MaxPool2d\)',
    ),
    'after another': (Net(se(), lambda n, x: n.se(n.eca(n.norm(n.conv(x)))), eca=mmasr.ECA(8)), 'after eca, which depends'),
    'two hosts': (Net(se(), both_norms, norm2=nn.BatchNorm2d(8)), 'it follows norm, and elsewhere not'),
    'host used elsewhere': (Net(se(), norm_elsewhere), 'norm feeds something else as well'),
    'host feeds a branch': (Net(se(), branch, relu=nn.ReLU()), 'norm feeds something else as well'),
    'two modules on one host': (Net(se(), two_modules, eca=mmasr.ECA(8)), 'norm feeds something else as well'),
    'nothing to scale': (
        Net(se(), lambda n, x: n.se(n.plain(n.conv(x))), plain=nn.InstanceNorm2d(8)),
        "can't carry an ASR: it has no weight to scale",
    ),
    'not run': (Net(se(), lambda n, x: n.norm(n.conv(x))), 'it did not run'),
}


@pytest.mark.parametrize('case', STAYING)
def test_what_cant_be_folded_says_why(case):
    network, reason = STAYING[case]
    ready(network)
    with torch.no_grad():
        expected = network(X)
    hosts, staying = find_hosts(network, {'se': torch.full((8,), 0.5)}, lambda: network(X))
    assert not hosts
    with pytest.raises(ValueError, match=reason):
        raise ValueError(staying['se'])
    with torch.no_grad():
        assert torch.equal(network(X), expected)


@pytest.fixture
def through_a_relu():
    return ready(Net(se(), lambda n, x: n.se(n.relu(n.norm(n.conv(x))))))


def test_a_positive_mean_passes_a_relu(through_a_relu):
    hosts, _ = find_hosts(through_a_relu, {'se': torch.full((8,), 0.5)}, lambda: through_a_relu(X))
    assert hosts


def test_a_negative_mean_does_not_pass_a_relu(through_a_relu):
    hosts, staying = find_hosts(through_a_relu, {'se': torch.full((8,), -0.5)}, lambda: through_a_relu(X))
    assert not hosts
    assert 'scaling norm (BatchNorm2d) does not scale what it gets' in staying['se']


@pytest.fixture
def config(shapes):
    """Makes the config of a classifier of two classes, with data."""

    def make(backbone, channels):
        loader = {
            'batch_size': 4,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'dataset': {
                'type': 'CustomDataset',
                'data_root': str(shapes / 'data/shapes'),
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
        {'type': 'mmpretrain.SEResNeXt', 'depth': 50, 'groups': 32, 'width_per_group': 4},
        2048,
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
    # No name without attention is known for it, so the modules are taken out.
    'another': (timm_backbone('regnety_002'), 368, ('type', 'mmasr.WithoutAttention')),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_become_stock_ones(config, tmp_path, name):
    backbone, channels, (key, value) = BACKBONES[name]
    model = save_network(tmp_path / 'a.pth', config(backbone, channels), ready)
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


def test_attention_that_a_deployed_network_has_left(config, tmp_path):
    trained = config(BACKBONES['ASR + SE'][0], 256)
    save_network(tmp_path / 'a.pth', trained, ready)
    deployed = reparameterize(tmp_path / 'a.pth')
    with_data = Config.fromfile(deployed.config)  # a deployed config has no training data
    with_data.train_dataloader = trained.train_dataloader
    with_data.dump(tmp_path / 'with_data.py')
    report = reparameterize(deployed.checkpoint, tmp_path / 'with_data.py', calibration=Calibration(images=5))
    assert len(report.means) == len(report.attention.hosts) == 16
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'


def test_a_whole_timm_classifier(config, tmp_path):
    trained = config({}, 0)
    trained.model = {'type': 'TimmClassifier', 'model_name': 'seresnet18', 'num_classes': 2}
    save_network(tmp_path / 'a.pth', trained, ready)
    report = reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=5))
    assert Config.fromfile(report.config).model.to_dict() == {**trained.model.to_dict(), 'model_name': 'resnet18'}


def made_up(metric):
    """An evaluation that counts the points a network loses by what is left of its attention."""

    def evaluation(model, loader, evaluator, track, description):
        if not evaluator:
            return evaluate(model, loader, evaluator)
        return {'accuracy/top1': metric(len(attention_modules(model)))}

    return evaluation


@pytest.fixture
def seresnet(config, tmp_path, monkeypatch):
    """The checkpoint of a network that is made to lose one point a module that is folded, of its eight."""
    monkeypatch.setattr(calibrate, 'evaluate', made_up(lambda left: 80 + left))
    save_network(tmp_path / 'a.pth', config(timm_backbone('seresnet18'), 512), ready)
    return tmp_path / 'a.pth'


@pytest.mark.parametrize('max_drop', [None, 8])
def test_all_is_folded_where_max_drop_allows_it(seresnet, max_drop):
    attention = reparameterize(seresnet, calibration=Calibration(5, max_drop)).attention
    assert len(attention.hosts) == 8
    assert not attention.staying


@pytest.mark.parametrize(('max_drop', 'folded'), [(3.5, 3), (1, 1)])
def test_max_drop_folds_the_steadiest(seresnet, max_drop, folded):
    report = reparameterize(seresnet, calibration=Calibration(5, max_drop))
    attention = report.attention
    assert len(attention.hosts) == folded
    assert len(attention.staying) == 8 - folded
    steadiness = {name: stripes.summary()['median_std'] for name, stripes in attention.stripes.items()}
    assert max(steadiness[name] for name in attention.hosts) <= min(steadiness[name] for name in attention.staying)
    assert set(attention.staying.values()) == {f'folding more would lose more than {max_drop} points of accuracy/top1'}
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmasr.WithoutAttention'
    assert deployed.custom_imports.imports == ['mmasr']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        left = attention_modules(MODELS.build(deployed.model))
    assert set(left) == set(attention.staying)


def test_a_max_drop_that_even_the_steadiest_exceeds_writes_nothing(seresnet, tmp_path):
    with pytest.raises(InputError, match=r'folding even backbone\.timm_model\.\S+ alone, the steadiest, loses more than 0\.5'):
        reparameterize(seresnet, calibration=Calibration(5, 0.5))
    assert list(tmp_path.iterdir()) == [seresnet]


@pytest.mark.parametrize(
    ('backbone', 'channels', 'message'),
    [
        ('efficientnet_b0', 1280, r'no attention module can be folded: .* and 11 more; .* does not scale what it gets'),
        ('resnet18', 512, 'has no attention that depends on its input'),
    ],
    ids=['attention that must stay', 'no attention'],
)
def test_nothing_to_fold_writes_nothing(config, tmp_path, backbone, channels, message):
    save_network(tmp_path / 'a.pth', config(timm_backbone(backbone), channels), ready)
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
def test_what_is_wrong_with_the_evaluation_is_one_line_and_writes_nothing(config, tmp_path, part, settings, message):
    trained = config(timm_backbone('seresnet18'), 512)
    save_network(tmp_path / 'a.pth', trained, ready)
    trained[part] = {**trained[part], **settings}
    trained.dump(tmp_path / 'own.py')
    with pytest.raises(InputError, match=message) as caught:
        reparameterize(tmp_path / 'a.pth', tmp_path / 'own.py', calibration=Calibration(images=5))
    assert '\n' not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'own.py'}


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(config, shapes, tmp_path, workers):
    shutil.copytree(shapes / 'data/shapes', tmp_path / 'data')
    broken = next((tmp_path / 'data').rglob('*.png'))
    broken.write_bytes(b'no image')
    trained = config(timm_backbone('seresnet18'), 512)
    for part in (trained.train_dataloader, trained.test_dataloader):
        part.dataset.data_root, part.num_workers = str(tmp_path / 'data'), workers
    save_network(tmp_path / 'a.pth', trained, ready)
    with pytest.raises(InputError, match=f"^{broken} can't be read as an image: "):
        reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=500))
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'data'}


def test_an_accuracy_is_in_points_already():
    assert points('accuracy/top1', 75.5) == 75.5


def test_a_mean_average_precision_is_a_share():
    assert points('coco/bbox_mAP', 0.375) == pytest.approx(37.5)


@pytest.fixture(scope='module')
def shapes_run(se_checkpoint, shapes):
    """What the tool prints when it folds the attention of the shapes run; its files are in the folder se."""
    result = run_tool('reparam.py', se_checkpoint[1], '--fold-attention', '--calibrate', 6, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tool_prints_what_it_folds_and_what_that_costs(shapes_run):
    for text in ('mean of SE, into', 'modules with attention', 'median std', 'coco/bbox_mAP', 'before', 'after'):
        assert text in shapes_run


@pytest.mark.usefixtures('shapes_run')
def test_the_tool_leaves_a_stock_detector(shapes):
    deployed = Config.fromfile(shapes / 'se/epoch_2_deploy.py')
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed


def test_the_metrics_after_are_those_of_the_deployed_files(shapes_run, shapes):
    metrics = run_tool('test.py', 'se/epoch_2_deploy.py', 'se/epoch_2_deploy.pth', '--work-dir', 'se_test', cwd=shapes)
    assert metrics.returncode == 0, metrics.stderr
    (file,) = (shapes / 'se_test').glob('*/*.json')
    assert f'{json.loads(file.read_text())["coco/segm_mAP"]:.4f}' in shapes_run


def test_calibrate_without_fold_attention_is_refused(se_checkpoint, shapes, refusal):
    assert refusal('reparam.py', se_checkpoint[1], '--out', 'se/other.pth', '--calibrate', 5, cwd=shapes) == (
        'error: --calibrate and --max-drop go with --fold-attention'
    )


def test_one_image_for_the_mean_is_refused():
    with pytest.raises(InputError, match='`images` 1: the mean needs two images at least'):
        Calibration(images=1)


@pytest.mark.parametrize('drop', [-1, float('nan')])
def test_a_max_drop_that_is_no_loss_is_refused(drop):
    with pytest.raises(InputError, match='give the points that may be lost, 0 or more'):
        Calibration(max_drop=drop)


def test_missing_data_is_said_and_nothing_is_written(se_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'train\.json is not there, and the embedded config takes its train_data'):
        reparameterize(se_checkpoint[1], out='other.pth', calibration=Calibration())
    assert not list(tmp_path.iterdir())


def test_folding_means_merges_nothing():
    """What a config can't build merged has to keep its branches."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), mmasr.SE(8), RepVggBlock(8, 8)).eval()
    fold_means(network, {'2': torch.rand(8)}, {'2': '1'})
    assert type(network[1]) is nn.BatchNorm2d
    assert type(network[2]) is nn.Identity
    assert network[3].reparam_conv is None
