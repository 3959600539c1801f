"""The configs: those of the paper's Table 5 build, train a step and predict, and the table lists them; the small ones too."""

import re

import cv2
import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT, run_tool
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from sklearn.datasets import load_digits
from test_detectors import DETECTORS
from test_segmentors import SEGMENTORS
from torch import nn

import mmasr
from mmasr.convolutions import DBB, OREPA, XVolution
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.stripes import attention_modules

PATHS = sorted((ROOT / 'configs').glob('*.py'))
BLOCKS = {'r50': 16, 'r101': 33}
VARIANTS = ['', '_se', '_asr_se', '_asr_se_se', '_eca', '_asr_eca', '_asr_eca_eca']
TABLE_5 = {f'mask_rcnn_{depth}{variant}.py' for depth in BLOCKS for variant in VARIANTS}
CONFIGS = [path for path in PATHS if path.name in TABLE_5]
each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
#: Convolutions that train with branches -> how many in a ResNet-50.
XVOLUTIONS = {
    f'{detector}_rcnn_r50_{name}': (XVolution, 6)
    for detector in ('faster', 'mask')
    for name in ('xvolution', 'xvolution_sa', 'xvolution_involution', 'sa_only', 'involution_only')
}
CONVOLUTIONS = {
    **XVOLUTIONS,
    'mask_rcnn_r50_xvolution_asr_se': (XVolution, 6),
    **dict.fromkeys(('faster_rcnn_r50_orepa', 'retinanet_r50_orepa', 'mask_rcnn_r50_orepa'), (OREPA, 53)),
    'mask_rcnn_r50_orepa_asr_se': (OREPA, 53),
    **dict.fromkeys(('faster_rcnn_r50_dbb', 'retinanet_r50_dbb'), (DBB, 16)),
}


def test_table_5_is_complete():
    assert len(CONFIGS) == len(TABLE_5)
    assert {path.stem for path in PATHS} == {path.stem for path in CONFIGS}.union(CONVOLUTIONS, DETECTORS, SEGMENTORS)


def test_the_page_lists_them():
    readme = (ROOT / 'configs/README.md').read_text()
    assert set(re.findall(r'\[`?(\w+\.py)`?\]\(\1\)', readme)) == {path.name for path in PATHS}


@each_config
def test_the_recipe_is_mmdetections(path):
    config = Config.fromfile(path)
    assert config.train_dataloader.batch_size == 2
    assert config.train_cfg.max_epochs == 12
    assert config.train_dataloader.dataset.data_root == 'data/coco/'
    assert config.model.backbone.init_cfg == {
        'type': 'Pretrained',
        'checkpoint': f'torchvision://resnet{config.model.backbone.depth}',
    }


def few_proposals(model):
    """Have the second stage of a detector's config, which takes the most of its time, look at few proposals."""
    if 'rcnn' in model.train_cfg:
        model.train_cfg.rpn_proposal.max_per_img = 50
        model.train_cfg.rcnn.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
        model.test_cfg.rcnn.max_per_img = 5


def train_a_step(model):
    """One step on a generated image with boxes and masks."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    data = model.data_preprocessor(demo_mm_inputs(1, [[3, 96, 128]], num_classes=80, with_mask=True), training=True)
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert loss.isfinite()
    optimizer.step()


def predicts(model):
    """What a detector finds in a generated image."""
    model.eval()
    with torch.no_grad():
        (prediction,) = model.test_step(demo_mm_inputs(1, [[3, 96, 128]], num_classes=80))
    return prediction.pred_instances


@each_config
def test_builds_trains_a_step_and_predicts(path):
    config = Config.fromfile(path)
    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    few_proposals(config.model)
    model = MODELS.build(config.model)
    _, depth, *kinds = path.stem.split('rcnn')[1].split('_')
    blocks = BLOCKS[depth]
    attention = {'se': mmasr.SE, 'eca': mmasr.ECA, None: ()}[kinds[-1] if kinds else None]
    hosts = [m for m in model.modules() if isinstance(m, Host)]
    plugins = [m for name, m in model.named_modules() if isinstance(m, attention) and '.asr' not in name]
    assert len(hosts) == (blocks if 'asr' in kinds else 0)
    assert len(plugins) == (blocks if kinds and kinds != ['asr', kinds[-1]] else 0)
    assert all(isinstance(host.asr.attention[0], attention) for host in hosts)
    for host in hosts:
        assert host.asr.scale().eq(1).all()
    for plugin in plugins:
        assert plugin.init_identity

    train_a_step(model)
    trained = [p for host in hosts[3:] for p in host.asr.parameters()]  # stage 1 is frozen
    assert all(p.grad is not None for p in trained)
    assert all(p.grad is None for host in hosts[:3] for p in host.asr.parameters())
    assert predicts(model).masks.shape[1:] == (96, 128)


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_a_detector_with_other_convolutions_trains_and_deploys(tmp_path, name):
    kind, count = CONVOLUTIONS[name]
    config = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False)
    assert config.train_cfg.max_epochs == 12
    assert config.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    config.model.backbone.init_cfg = None
    few_proposals(config.model)
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    convs = [module for module in model.modules() if isinstance(module, kind)]
    # The stem of OREPA is composed of three kernels with branches of their own.
    assert len(convs) == count + (3 if kind is OREPA else 0)
    for _ in range(2 if kind is XVolution else 1):  # RetinaNet goes astray from random weights
        train_a_step(model)
    predicts(model)
    if name in XVOLUTIONS and name != 'mask_rcnn_r50_xvolution':
        return  # every branch is deployed in tests/convolutions/test_xvolution.py
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(d.relative for d in report.differences) <= 1e-5
    if kind is OREPA:
        assert max(d.absolute for d in report.differences) == 0
    deployed = Config.fromfile(report.config)
    ours = kind is XVolution
    assert deployed.model.backbone.type == ('mmasr.ASRResNet' if ours else 'mmdet.ResNet')
    assert ('custom_imports' in deployed) == ours
    assert len(report.ours) == count * ours


@pytest.mark.parametrize(
    'name', [name for name in CONVOLUTIONS if not name.endswith('_only') and 'faster_rcnn_r50_x' not in name]
)
def test_a_detector_with_other_convolutions_starts_as_torchvisions_network(tmp_path, name):
    config = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope('mmdet')
    plain = torchvision.models.resnet50()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    outputs = []
    for options in ({}, {'type': 'ResNet', 'convs': None, 'asr': None}):
        backbone = {**config.model.backbone, **options}
        backbone = {key: value for key, value in backbone.items() if value is not None}
        backbone['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'plain.pth')}
        network = MODELS.build(backbone)
        network.init_weights()
        network.eval()
        with torch.no_grad():
            outputs.append(network(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))))
    for found, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'kinds'),
    [
        (
            'digits/resnet20',
            (
                *('_orepa', '_dbb', '_orepa_asr_se', '_xvolution', '_xvolution_sa', '_xvolution_involution'),
                *('_sa_only', '_involution_only', '_xvolution_asr_se'),
            ),
        ),
        ('shapes/mask_rcnn_r18', ('_orepa', '_dbb', '_orepa_asr_se', '_xvolution', '_xvolution_sa')),
    ],
    ids=['digits', 'shapes'],
)
def test_small_configs_differ_in_their_convolutions_only(name, kinds):
    found = []
    for suffix in ('', *kinds):
        config = Config.fromfile(ROOT / f'configs/{name}{suffix}.py')
        init_default_scope(config.default_scope)
        model = MODELS.build(config.pop('model'))
        config.pop('custom_imports', None)
        assert any(isinstance(module, OREPA | DBB | XVolution) for module in model.modules()) == bool(suffix)
        found.append(config.to_dict())
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize('name', ['digits/resnet20', 'shapes/mask_rcnn_r18'])
def test_small_configs_differ_in_their_attention_only(name):
    found = {}
    for suffix in ('', '_se', '_asr_se'):
        config = Config.fromfile(ROOT / f'configs/{name}{suffix}.py')
        init_default_scope(config.default_scope)
        model = MODELS.build(config.pop('model'))
        config.pop('custom_imports', None)
        hosts = sum(isinstance(module, Host) for module in model.modules())
        found[suffix] = hosts, len(attention_modules(model)), config.to_dict()
    blocks = found['_se'][1]
    assert blocks > 0
    assert [(hosts, attention) for hosts, attention, _ in found.values()] == [(0, 0), (0, blocks), (blocks, 0)]
    assert found[''][2] == found['_se'][2] == found['_asr_se'][2]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A folder with the digits where the configs look for them, and what the tool said."""
    folder = tmp_path_factory.mktemp('digits')
    result = run_tool('digits.py', 'data/digits', cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_digits_are_written_once_each(digits):
    folder, said = digits
    assert said == 'data/digits: 300 training and 1497 validation images of 8 x 8\n'
    files = list(folder.rglob('*.png'))
    assert len(files) == len({path.name for path in files}) == 1797
    assert {path.parent.name for path in files} == set('0123456789')


def test_a_digit_is_as_scikit_learn_has_it(digits):
    folder, _ = digits
    path = min(folder.rglob('*.png'))
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    index = int(path.stem)
    original = load_digits()
    assert np.array_equal((image / 255 * 16).round(), original.images[index])  # in sixteenths
    assert original.target[index] == int(path.parent.name)


def test_the_digits_train(digits):
    folder, _ = digits
    schedule = ['train_cfg.max_epochs=6', 'train_cfg.val_interval=6']
    result = run_tool('train.py', ROOT / 'configs/digits/resnet20_asr_se.py', '--cfg-options', *schedule, cwd=folder)
    assert result.returncode == 0, result.stderr
    accuracy = float(re.findall(r'accuracy/top1: ([\d.]+)', result.stdout + result.stderr)[-1])
    assert accuracy > 20  # of ten classes; a network that does not learn is at 10


def test_the_digits_go_into_a_folder(tmp_path, refusal):
    (tmp_path / 'file').write_text('')
    assert refusal('digits.py', 'file', cwd=tmp_path) == "error: can't write to file: Not a directory"


def test_a_pretrained_network_is_left_as_it_is():
    """With init_identity the detector starts as torchvision's ResNet, in the frozen stage as well."""
    outputs = []
    for name in ('mask_rcnn_r50', 'mask_rcnn_r50_asr_se_se'):
        config = Config.fromfile(ROOT / f'configs/{name}.py')
        config.model.backbone.update(init_cfg=None, zero_init_residual=False)
        backbone = MODELS.build(config.model.backbone)
        torch.manual_seed(0)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        backbone.eval()
        outputs.append(backbone(torch.ones(1, 3, 64, 64)))
    for plain, with_asr in zip(*outputs, strict=True):
        assert torch.equal(plain, with_asr)
