"""A checkpoint that was written before the package had rooms resumes, evaluates and deploys."""

import json

import pytest
import torch
from before_the_rooms import CONFIG, NAMES
from helpers import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmasr.reparam import reparameterize

KEYS = NAMES.split()


@pytest.fixture(scope='module')
def old(shapes):
    """The checkpoint: its own names and config, weights of a seed, and what a runner counts."""
    (shapes / 'old.py').write_text(CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(shapes / 'old.py').model)
    weights = model.state_dict()
    assert list(weights) == KEYS
    meta = {'epoch': 1, 'iter': 4, 'cfg': CONFIG, 'seed': 0, 'dataset_meta': {'classes': ('circle', 'square', 'triangle')}}
    hub = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}
    torch.save({'meta': meta, 'message_hub': hub, 'state_dict': {name: weights[name] for name in KEYS}}, shapes / 'old.pth')
    return shapes / 'old.pth'


def test_it_resumes(old, shapes):
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    result = run_tool('train.py', 'old.py', '--work-dir', 'old', '--resume', old, *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    assert 'resumed epoch: 1' in result.stdout + result.stderr
    assert list(torch.load(shapes / 'old/epoch_2.pth', weights_only=False)['state_dict']) == KEYS


def test_it_evaluates(old, shapes):
    result = run_tool('test.py', 'old.py', old, '--work-dir', 'old_tested', cwd=shapes)
    assert result.returncode == 0, result.stderr
    (metrics,) = (shapes / 'old_tested').glob('*/*.json')
    assert 'coco/segm_mAP' in json.loads(metrics.read_text())


def test_it_deploys(old, tmp_path):
    report = reparameterize(old, out=tmp_path / 'deployed.pth')
    assert len(report.folded) == 8
    weights = torch.load(report.checkpoint, weights_only=True)['state_dict']
    assert list(weights) == [name for name in KEYS if '.asr.' not in name]
    assert Config.fromfile(report.config).model.backbone.type == 'mmdet.ResNet'


def test_its_config_is_where_it_was():
    assert (ROOT / 'configs/mask_rcnn_r50_asr_se.py').is_file()
