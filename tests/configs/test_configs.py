"""The configs of the paper's Table 5, of detectors with other convolutions, and of the small datasets."""

import re

import pytest
import torch
import torchvision
from helpers import ROOT
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from test_detectors import DETECTORS
from test_segmentors import SEGMENTORS
from torch import nn

import mmasr
from mmasr.convolutions import DBB, OREPA, XVolution
from mmasr.core.host import Host
from mmasr.core.reparameterization import Reparameterization
from mmasr.deploy.reparameterize import reparameterize
from mmasr.stripes import attention_modules

PATHS = sorted((ROOT / 'configs').glob('*.py'))
BLOCKS = {'r50': 16, 'r101': 33}
VARIANTS = ['', '_se', '_asr_se', '_asr_se_se', '_eca', '_asr_eca', '_asr_eca_eca']
TABLE_5 = {f'mask_rcnn_{depth}{variant}.py' for depth in BLOCKS for variant in VARIANTS}
CONFIGS = [path for path in PATHS if path.name in TABLE_5]
each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
#: Config -> class of its convolutions with branches, and their number in a ResNet-50.
XVOLUTIONS = {
    f'{detector}_rcnn_r50_{name}': (XVolution, 6)
    for detector in ('faster', 'mask')
    for name in ('xvolution', 'xvolution_sa', 'xvolution_involution', 'sa_only', 'involution_only')
}
REPARAMETERIZATIONS = {
    **XVOLUTIONS,
    'mask_rcnn_r50_xvolution_asr_se': (XVolution, 6),
    **dict.fromkeys(('faster_rcnn_r50_orepa', 'retinanet_r50_orepa', 'mask_rcnn_r50_orepa'), (OREPA, 53)),
    'mask_rcnn_r50_orepa_asr_se': (OREPA, 53),
    **dict.fromkeys(('faster_rcnn_r50_dbb', 'retinanet_r50_dbb'), (DBB, 16)),
}

# One or two of each kind are also deployed; tests/convolutions deploys every kind in all its forms.
DEPLOYED = {
    'mask_rcnn_r50_xvolution_asr_se',
    'mask_rcnn_r50_orepa_asr_se',
    'faster_rcnn_r50_orepa',
    'retinanet_r50_dbb',
}


def test_table_5_is_complete():
    assert len(CONFIGS) == len(TABLE_5)
    assert {path.stem for path in PATHS} == {path.stem for path in CONFIGS}.union(
        REPARAMETERIZATIONS, DETECTORS, SEGMENTORS
    )


def test_the_page_lists_all_configs():
    readme = (ROOT / 'configs/README.md').read_text()
    assert set(re.findall(r'\[`?(\w+\.py)`?\]\(\1\)', readme)) == {path.name for path in PATHS}


@each_config
def test_the_recipe_is_that_of_mmdetection(path):
    config = Config.fromfile(path)
    assert config.train_dataloader.batch_size == 2
    assert config.train_cfg.max_epochs == 12
    assert config.train_dataloader.dataset.data_root == 'data/coco/'
    assert config.model.backbone.init_cfg == {
        'type': 'Pretrained',
        'checkpoint': f'torchvision://resnet{config.model.backbone.depth}',
    }


def few_proposals(model):
    """Reduce the number of proposals in a config, since a detector's second stage takes most of the time."""
    if 'rcnn' in model.train_cfg:
        model.train_cfg.rpn_proposal.max_per_img = 50
        model.train_cfg.rcnn.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
        model.test_cfg.rcnn.max_per_img = 5


def train_a_step(model):
    """Train one step on a generated image with boxes and masks."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    data = model.data_preprocessor(
        demo_mm_inputs(1, [[3, 96, 128]], num_classes=80, with_mask=True), training=True
    )
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert loss.isfinite()
    optimizer.step()


def predict(model):
    """Return the predictions of a detector for a generated image."""
    model.eval()
    with torch.no_grad():
        (prediction,) = model.test_step(demo_mm_inputs(1, [[3, 96, 128]], num_classes=80))
    return prediction.pred_instances


@each_config
def test_a_detector_builds_trains_a_step_and_predicts(path):
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
    assert predict(model).masks.shape[1:] == (96, 128)


@pytest.mark.parametrize('name', REPARAMETERIZATIONS)
def test_a_detector_with_other_convolutions_trains_and_deploys(tmp_path, name):
    kind, count = REPARAMETERIZATIONS[name]
    config = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False)
    assert config.train_cfg.max_epochs == 12
    assert config.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    # A quarter of the channels; the next test builds the backbones as they are.
    config.model.backbone.update(init_cfg=None, base_channels=16)
    config.model.neck.in_channels = [channels // 4 for channels in config.model.neck.in_channels]
    few_proposals(config.model)
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    convs = [module for module in model.modules() if isinstance(module, kind)]
    # The stem of OREPA is composed of three kernels, each with its own branches.
    assert len(convs) == count + (3 if kind is OREPA else 0)
    for _ in range(2 if kind is XVolution else 1):  # a second step of RetinaNet diverges from random weights
        train_a_step(model)
    predict(model)
    if name not in DEPLOYED:
        return
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
    'name',
    [name for name in REPARAMETERIZATIONS if not name.endswith('_only') and 'faster_rcnn_r50_x' not in name],
)
def test_a_detector_with_other_convolutions_starts_as_the_pretrained_network(tmp_path, name):
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
                *('_repvgg', '_qarepvgg', '_mobileone', '_dbb_orepa'),
            ),
        ),
        ('digits/convnext', ('_dilated',)),
        (
            'shapes/mask_rcnn_r18',
            ('_orepa', '_dbb', '_orepa_asr_se', '_xvolution', '_xvolution_sa', '_repvgg', '_qarepvgg'),
        ),
    ],
    ids=['digits', 'ConvNeXt on digits', 'shapes'],
)
def test_small_configs_differ_only_in_their_convolutions(name, kinds):
    found = []
    for suffix in ('', *kinds):
        config = Config.fromfile(ROOT / f'configs/{name}{suffix}.py')
        init_default_scope(config.default_scope)
        model = MODELS.build(config.pop('model'))
        config.pop('custom_imports', None)
        assert any(isinstance(module, Reparameterization) for module in model.modules()) == bool(suffix)
        found.append(config.to_dict())
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize('name', ['digits/resnet20', 'shapes/mask_rcnn_r18'])
def test_small_configs_differ_only_in_their_attention(name):
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
    assert [(hosts, attention) for hosts, attention, _ in found.values()] == [
        (0, 0),
        (0, blocks),
        (blocks, 0),
    ]
    assert found[''][2] == found['_se'][2] == found['_asr_se'][2]


def test_with_init_identity_a_detector_starts_exactly_as_the_pretrained_network():
    """This includes the frozen stage."""
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
