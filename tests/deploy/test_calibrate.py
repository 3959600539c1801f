"""Folding attention that was trained as ordinary attention."""

import copy
import json

import pytest
import timm
import torch
from helpers import SE_CONFIG, randomize, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import MobileNetV3, SEResNet
from torch import nn

import mmasr
from mmasr.deploy import calibrate
from mmasr.deploy.calibrate import Calibration, points
from mmasr.deploy.reparameterize import reparameterize
from mmasr.deploy.untrusted_config import check_data_config
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


def test_a_negative_mean_does_not_pass_a_relu():
    network = ready(Net(se(), lambda n, x: n.se(n.relu(n.norm(n.conv(x))))))
    for mean, folds in ((0.5, True), (-0.5, False)):
        hosts, staying = find_hosts(network, {'se': torch.full((8,), mean)}, lambda: network(X))
        assert bool(hosts) == folds
    assert 'scaling norm (BatchNorm2d) does not scale what it gets' in staying['se']


def config(backbone, channels, scope='mmpretrain', data=None, **model):
    """A classifier's config, with data of two classes."""
    head = {'type': 'LinearClsHead', 'num_classes': 2, 'in_channels': channels, 'loss': {'type': 'CrossEntropyLoss'}}
    model = {
        'type': 'ImageClassifier',
        'backbone': backbone,
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {**head, 'topk': (1,)},
        **model,
    }
    loader = {
        'batch_size': 4,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': {
            'type': 'CustomDataset',
            'data_root': str(data),
            'pipeline': [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}],
        },
    }
    return Config(
        {
            'model': {key: value for key, value in model.items() if value is not None},
            'data_preprocessor': {'num_classes': 2, 'mean': [128] * 3, 'std': [64] * 3},
            'default_scope': scope,
            'custom_imports': {'imports': ['mmasr']},
            'train_dataloader': loader,
            'test_dataloader': loader,
            'test_evaluator': {'type': 'Accuracy', 'topk': (1,)},
        }
    )


def save(path, config):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = ready(MODELS.build(copy.deepcopy(config.model)))
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, path)
    return model


SE_PLUGIN = {'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv3'}
ASR_PLUGIN = {'cfg': {'type': 'mmasr.ASR', 'attention': {'type': 'SE'}}, 'position': 'after_conv3'}
SMALL = {'depth': 50, 'base_channels': 8}
BACKBONES = {
    'SEResNet': ({'type': 'SEResNet', **SMALL, 'stem_channels': 8, 'se_ratio': 8}, 256, ('type', 'ResNet')),
    'SEResNeXt': (
        {'type': 'mmpretrain.SEResNeXt', 'depth': 50, 'groups': 32, 'width_per_group': 4},
        2048,
        ('type', 'mmpretrain.ResNeXt'),
    ),
    'timm': ({'type': 'TIMMBackbone', 'model_name': 'seresnet18'}, 512, ('model_name', 'resnet18')),
    'plugins': ({'type': 'mmdet.ResNet', **SMALL, 'out_indices': (3,), 'plugins': [SE_PLUGIN]}, 256, ('type', 'mmdet.ResNet')),
    'ASR + SE': (
        {
            'type': 'mmasr.ASRResNet',
            **SMALL,
            'out_indices': (3,),
            'asr': {'attention': {'type': 'ECA'}},
            'plugins': [ASR_PLUGIN, SE_PLUGIN],
        },
        256,
        ('type', 'mmdet.ResNet'),
    ),
    # No name without attention is known for it, so the modules are taken out.
    'another': ({'type': 'TIMMBackbone', 'model_name': 'regnety_002'}, 368, ('type', 'mmasr.WithoutAttention')),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_become_stock_ones(shapes, tmp_path, name):
    backbone, channels, (key, value) = BACKBONES[name]
    trained = config(backbone, channels, data=shapes / 'data/shapes')
    model = save(tmp_path / 'a.pth', trained)
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


def test_attention_that_a_deployed_network_has_left(shapes, tmp_path):
    save(tmp_path / 'a.pth', config(BACKBONES['ASR + SE'][0], 256, data=shapes / 'data/shapes'))
    deployed = reparameterize(tmp_path / 'a.pth').checkpoint
    report = reparameterize(deployed, calibration=Calibration(images=5))
    assert len(report.means) == len(report.attention.hosts) == 16
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'


def test_a_whole_timm_classifier(shapes, tmp_path):
    trained = config({}, 0, data=shapes / 'data/shapes')
    trained.model = {'type': 'TimmClassifier', 'model_name': 'seresnet18', 'num_classes': 2}
    save(tmp_path / 'a.pth', trained)
    report = reparameterize(tmp_path / 'a.pth', calibration=Calibration(images=5))
    assert Config.fromfile(report.config).model.to_dict() == {**trained.model.to_dict(), 'model_name': 'resnet18'}


def made_up(metric):
    """An evaluation that counts the points a network loses by what is left of its attention."""

    def evaluation(model, loader, evaluator, track, description):
        if not evaluator:
            return evaluate(model, loader, evaluator)
        return {'accuracy/top1': metric(len(attention_modules(model)))}

    return evaluation


@pytest.mark.parametrize(('max_drop', 'folded'), [(None, 8), (8, 8), (3.5, 3), (1, 1)])
def test_max_drop_folds_the_steadiest(shapes, tmp_path, monkeypatch, max_drop, folded):
    trained = config({'type': 'TIMMBackbone', 'model_name': 'seresnet18'}, 512, data=shapes / 'data/shapes')
    save(tmp_path / 'a.pth', trained)
    monkeypatch.setattr(calibrate, 'evaluate', made_up(lambda left: 80 + left))
    report = reparameterize(tmp_path / 'a.pth', calibration=Calibration(5, max_drop))
    attention = report.attention
    assert len(attention.hosts) == folded
    steadiness = {name: stripes.summary()['median_std'] for name, stripes in attention.stripes.items()}
    if attention.staying:
        assert max(steadiness[name] for name in attention.hosts) <= min(steadiness[name] for name in attention.staying)
        assert set(attention.staying.values()) == {f'folding more would lose more than {max_drop} points of accuracy/top1'}
        deployed = Config.fromfile(report.config)
        assert deployed.model.backbone.type == 'mmasr.WithoutAttention'
        assert deployed.custom_imports.imports == ['mmasr']
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            left = attention_modules(MODELS.build(deployed.model))
        assert set(left) == set(attention.staying)


def test_nothing_can_be_folded(shapes, tmp_path, monkeypatch):
    trained = config({'type': 'TIMMBackbone', 'model_name': 'seresnet18'}, 512, data=shapes / 'data/shapes')
    save(tmp_path / 'a.pth', trained)
    efficient = config({'type': 'TIMMBackbone', 'model_name': 'efficientnet_b0'}, 1280, data=shapes / 'data/shapes')
    save(tmp_path / 'b.pth', efficient)
    plain = config({'type': 'TIMMBackbone', 'model_name': 'resnet18'}, 512, data=shapes / 'data/shapes')
    save(tmp_path / 'c.pth', plain)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(calibrate, 'evaluate', made_up(lambda left: 80 + left))
    with pytest.raises(InputError, match=r'folding even backbone\.timm_model\.\S+ alone, the steadiest, loses more than 0\.5'):
        reparameterize(tmp_path / 'a.pth', calibration=Calibration(5, 0.5))
    with pytest.raises(InputError, match=r'no attention module can be folded: .* and 11 more; .* does not scale what it gets'):
        reparameterize(tmp_path / 'b.pth', calibration=Calibration(5))
    with pytest.raises(InputError, match='has no attention that depends on its input'):
        reparameterize(tmp_path / 'c.pth', calibration=Calibration(5))
    assert sorted(tmp_path.iterdir()) == before


def test_points():
    assert points('accuracy/top1', 75.5) == 75.5
    assert points('coco/bbox_mAP', 0.375) == pytest.approx(37.5)


def test_a_config_from_a_stranger_reads_local_images_only():
    shapes = Config.fromfile(SE_CONFIG)
    check_data_config(shapes.test_dataloader.to_dict(), shapes.test_evaluator.to_dict())
    for change, message in (
        ({'dataset.type': 'LVISDataset'}, "uses 'LVISDataset'"),
        ({'dataset.type': 'mmpretrain.CIFAR10'}, r"uses 'mmpretrain\.CIFAR10'"),
        ({'dataset.pipeline.0.type': 'LoadProposals'}, "uses 'LoadProposals'"),
        ({'dataset.pipeline.0.backend_args': {'backend': 'http'}}, 'has backend_args'),
        ({'dataset.ann_file': 'http://example.org/a.json'}, 'has ann_file'),
        ({'dataset.proposal_file': 'a.pkl'}, 'has proposal_file'),
        ({'collate_fn': {'type': 'os.system'}}, "uses 'os.system'"),
    ):
        loader = Config({'test_dataloader': copy.deepcopy(shapes.test_dataloader)})
        loader.merge_from_dict({f'test_dataloader.{key}': value for key, value in change.items()})
        with pytest.raises(InputError, match=message):
            check_data_config(loader.test_dataloader.to_dict())
    with pytest.raises(InputError, match='has outfile_prefix'):
        check_data_config({**shapes.test_evaluator.to_dict(), 'outfile_prefix': 'somewhere'})


def test_the_tool_on_the_shapes_run(se_checkpoint, shapes, refusal):
    _, checkpoint = se_checkpoint
    result = run_tool('reparam.py', checkpoint, '--fold-attention', '--calibrate', 6, cwd=shapes)
    assert result.returncode == 0, result.stderr
    for text in ('mean of SE, into', 'modules with attention', 'median std', 'coco/bbox_mAP', 'before', 'after'):
        assert text in result.stdout
    deployed = Config.fromfile(shapes / 'se/epoch_2_deploy.py')
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'plugins' not in deployed.model.backbone
    assert 'custom_imports' not in deployed
    # What was printed as "after" is what the deployed files give.
    metrics = run_tool('test.py', 'se/epoch_2_deploy.py', 'se/epoch_2_deploy.pth', '--work-dir', 'se_test', cwd=shapes)
    assert metrics.returncode == 0, metrics.stderr
    (file,) = (shapes / 'se_test').glob('*/*.json')
    assert f'{json.loads(file.read_text())["coco/segm_mAP"]:.4f}' in result.stdout

    assert refusal('reparam.py', checkpoint, '--out', 'se/other.pth', '--calibrate', 5, cwd=shapes) == (
        'error: --calibrate and --max-drop go with --fold-attention'
    )


def test_bad_arguments_and_missing_data(se_checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='--calibrate 1: the mean needs two images at least'):
        Calibration(images=1)
    for drop in (-1, float('nan')):
        with pytest.raises(InputError, match='give the points that may be lost, 0 or more'):
            Calibration(max_drop=drop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'train\.json is not there, and the embedded config takes its train_data'):
        reparameterize(se_checkpoint[1], out='other.pth', calibration=Calibration())
    assert not list(tmp_path.iterdir())
