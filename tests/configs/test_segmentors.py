"""Configs of segmentors: reduced in size, they train a step, start as the pretrained network, and deploy."""

from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT, randomize
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmasr
from mmasr.convolutions import DBB, OREPA
from mmasr.core.host import Host
from mmasr.deploy.compare import network_outputs
from mmasr.deploy.reparameterize import reparameterize
from mmasr.openmmlab.building import build_model

pytestmark = [
    pytest.mark.skipif(not find_spec('mmseg'), reason='MMSegmentation is not installed; it is an extra'),
    pytest.mark.xdist_group('segmentation'),  # each process parses MMSegmentation's model index
]
#: Variant -> class of its re-parameterization, and their number in a ResNetV1c-50.
KINDS = {'orepa': (OREPA, 55), 'dbb': (DBB, 19), 'asr_se': (mmasr.ASR, 16)}
SEGMENTORS = {
    f'{segmentor}_r50{variant}': KINDS.get(variant.removeprefix('_'))
    for segmentor in ('pspnet', 'deeplabv3plus')
    for variant in ('', '_orepa', '_dbb', '_asr_se')
}


def small(name):
    """Return a config with narrow layers, which does not download weights."""
    config = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False)
    assert config.train_cfg.max_iters == 40000
    assert config.train_dataloader.dataset.data_root == 'data/cityscapes/'
    assert config.model.pop('pretrained') == 'open-mmlab://resnet50_v1c'
    config.model.backbone.update(stem_channels=8, base_channels=8)
    config.model.data_preprocessor.size = (64, 64)
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.update(in_channels=head.in_channels // 8, channels=16)
    if 'c1_in_channels' in config.model.decode_head:
        config.model.decode_head.update(c1_in_channels=32, c1_channels=8)
    return config


def train_a_step(model):
    """Train one step on noise images and noise maps."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    maps = torch.randint(0, 19, (2, 1, 64, 64))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=data)) for data in maps]
    batch = {'inputs': [*torch.randint(0, 255, (2, 3, 64, 64))], 'data_samples': samples}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()


@pytest.mark.parametrize('name', SEGMENTORS)
def test_a_segmentor_trains_a_step_and_deploys(tmp_path, name):
    config = small(name)
    init_default_scope('mmseg')
    model = MODELS.build(config.model)
    model.init_weights()
    train_a_step(model)
    if SEGMENTORS[name] is None:
        return
    kind, count = SEGMENTORS[name]
    assert sum(isinstance(module, kind) for module in model.modules()) == count
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(d.relative for d in report.differences) <= (1e-5 if kind is DBB else 0)
    assert not {'test_dataloader', 'test_evaluator'} & set(report.left_out)
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmseg.ResNetV1c'
    assert 'custom_imports' not in deployed


@pytest.mark.parametrize('name', [name for name, kind in SEGMENTORS.items() if kind])
def test_with_init_identity_a_segmentor_starts_as_the_pretrained_network(name):
    plain = randomize(build_model(small(name.rsplit('_r50')[0] + '_r50')))
    model = build_model(small(name))
    model.init_weights()
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    expected, found = network_outputs(plain), network_outputs(model)
    for key, value in expected.items():  # DBB's BatchNorms are the identity, but they round
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4 * value.abs().max().item())


def test_the_segmentors_of_the_shapes_differ_only_in_their_backbones():
    found = []
    for suffix in ('', '_asr_se', '_orepa'):
        config = Config.fromfile(ROOT / f'configs/shapes/fpn_r18{suffix}.py')
        model = build_model(config)
        hosts = [module.reparameterization() for module in model.modules() if isinstance(module, Host)]
        assert bool(hosts) == bool(suffix)
        assert all(isinstance(child, mmasr.ASR if suffix == '_asr_se' else OREPA) for child in hosts)
        config.model.pop('backbone'), config.pop('custom_imports', None)
        found.append(config.to_dict())
    assert found[0] == found[1] == found[2]
