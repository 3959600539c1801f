"""Configs with ASR(SE) in current detectors: reduced in size, they train, evaluate and deploy."""

import functools

import pytest
import torch
from forked import run_python
from helpers import ROOT, randomize
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmasr.core.host import Host
from mmasr.deploy.compare import network_outputs
from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.experiments.shapes import CLASSES, write_shapes
from mmasr.openmmlab.building import build_model, build_runner, load_weights
from mmasr.untrusted.checkpoint import read_checkpoint

pytestmark = pytest.mark.xdist_group('detectors')  # so that each is trained once

CSP = {'backbone.backbone.widen_factor': 0.125, 'neck.in_channels': [32, 64, 128], 'neck.out_channels': 32}
HEAD = {'bbox_head.in_channels': 32, 'bbox_head.feat_channels': 32, 'bbox_head.num_classes': 3}
#: Config -> settings that reduce the model, and the number of ASR's sites, one for each residual branch.
DETECTORS = {
    'rtmdet_s_asr_se': ({**CSP, **HEAD}, 6),
    'rtmdet_ins_s_asr_se': ({**CSP, **HEAD, 'test_cfg.score_thr': 0}, 6),
    'yolox_s_asr_se': ({**CSP, **HEAD, 'test_cfg.score_thr': 0}, 8),
    'dino_r50_asr_se': (
        {
            'backbone.base_channels': 8,
            'neck.in_channels': [64, 128, 256],
            'encoder.num_layers': 1,
            'decoder.num_layers': 2,
            'num_queries': 20,
            'dn_cfg.group_cfg.num_dn_queries': 5,
            'bbox_head.num_classes': 3,
            'test_cfg.max_per_img': 20,
        },
        16,
    ),
    'mask2former_r50_asr_se': (
        {
            'backbone.base_channels': 8,
            'panoptic_head.in_channels': [32, 64, 128, 256],
            'panoptic_head.pixel_decoder.encoder.num_layers': 1,
            'panoptic_head.transformer_decoder.num_layers': 2,
            'panoptic_head.num_queries': 20,
            'panoptic_head.num_things_classes': 3,
            'panoptic_head.loss_cls.class_weight': [1, 1, 1, 0.1],
            'panoptic_fusion_head.num_things_classes': 3,
            'train_cfg.num_points': 64,
            'test_cfg.max_per_image': 20,
        },
        16,
    ),
}
each_detector = pytest.mark.parametrize('name', DETECTORS)


def shrunk(value):
    """Return a part of a config with images of 64 pixels; integers of 320 or more are sides of images."""
    if isinstance(value, dict):
        return type(value)({key: shrunk(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(shrunk(item) for item in value)
    return 64 if isinstance(value, int) and value >= 320 else value


def small_config(name, folder):
    """Return a config with its own recipe, for two iterations on small images of shapes.

    If the recipe switches its pipeline, it does so before the second iteration.
    """
    config = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False)
    config.merge_from_dict({f'model.{key}': value for key, value in DETECTORS[name][0].items()})
    config.model.backbone.get('backbone', config.model.backbone).init_cfg = None
    config.model.data_preprocessor = shrunk(config.model.data_preprocessor)
    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = config[f'{part}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset = shrunk(loader.dataset)
        dataset = loader.dataset.get('dataset', loader.dataset)
        dataset.update(
            data_root=str(folder),
            ann_file=f'{split}.json',
            data_prefix={'img': split},
            metainfo={'classes': CLASSES},
        )
        if part != 'train':
            config[f'{part}_evaluator'].ann_file = f'{folder}/val.json'
    for hook in config.get('custom_hooks', []):
        for key in {'switch_epoch', 'num_last_epochs'} & set(hook):
            hook[key] = 1
        hook.update(shrunk(hook))
    by_epoch = 'max_epochs' in config.train_cfg
    config.train_cfg.update({'max_epochs' if by_epoch else 'max_iters': 2, 'val_interval': 2})
    config.default_hooks.checkpoint.update(interval=2)
    config.update(work_dir=str(folder / name), log_level='ERROR', randomness={'seed': 0})
    return config


# Predicts with stock MMDetection, in an interpreter that cannot import mmasr.
STOCK = """
import sys
import torch
from mmdet.apis import inference_detector, init_detector
out, image, *files = sys.argv[1:]
found = []
for config, checkpoint in zip(files[::2], files[1::2]):
    model = init_detector(config, checkpoint, device='cpu')
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)
    found.append(dict(inference_detector(model, image).pred_instances.items()))
torch.save(found, out)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detectors')
    write_shapes(folder, train=2, val=2, size=64)
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """Return a function that trains a config like the tools do, once, and deploys its checkpoint.

    The function returns runner, checkpoint and report.
    """

    @functools.cache
    def train(name):
        runner = build_runner(small_config(name, folder))
        runner.train()
        (checkpoint,) = (folder / name).glob('*_2.pth')
        return runner, checkpoint, reparameterize(checkpoint)

    return train


@each_detector
def test_a_detector_trains_evaluates_and_deploys(trained, name):
    runner, _, report = trained(name)
    hosts = {name: module for name, module in runner.model.named_modules() if isinstance(module, Host)}
    assert len(hosts) == len(report.folded) == DETECTORS[name][1]
    stem = name.split('_')[0]
    frozen = [name for name in hosts if stem == 'dino' and '.layer1.' in name]
    for site, host in hosts.items():  # a frozen γ does not freeze the ASR
        assert all(
            (p in runner.optim_wrapper.optimizer.state) == (site not in frozen) for p in host.asr.parameters()
        )
    assert all(hook._has_switched for hook in runner.hooks if hasattr(hook, '_has_switched'))
    for kind in ('bbox', 'segm') if 'ins' in name or stem == 'mask2former' else ('bbox',):
        assert runner.message_hub.get_scalar(f'val/coco/{kind}_mAP').current() >= 0

    assert max(difference.absolute for difference in report.differences) == 0
    assert not {'test_dataloader', 'test_evaluator'} & set(report.left_out)
    config = Config.fromfile(report.config)
    assert 'custom_imports' not in config
    assert config.model.backbone.type == {'rtmdet': 'CSPNeXt', 'yolox': 'CSPDarknet'}.get(
        stem, 'mmdet.ResNet'
    )


def test_stock_mmdetection_predicts_the_same_as_the_trained_detectors(trained, folder):
    reports = {name: trained(name) for name in DETECTORS}
    image = folder / 'val/0001.png'
    files = [file for *_, report in reports.values() for file in (report.config, report.checkpoint)]
    run_python(STOCK, folder / 'found.pt', image, *files, without=['mmasr']).check_returncode()
    for (runner, checkpoint, _), found in zip(reports.values(), torch.load(folder / 'found.pt'), strict=True):
        model = build_model(runner.cfg)
        load_weights(model.eval(), read_checkpoint(checkpoint)['state_dict'], checkpoint)
        model.cfg = runner.cfg
        expected = dict(inference_detector(model, str(image)).pred_instances.items())
        assert len(expected['scores']) > 0
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value)  # folding writes the products that the network ran with


@each_detector
def test_with_init_identity_a_detector_starts_exactly_as_the_pretrained_detector(name, folder):
    config = small_config(name, folder)
    plain = randomize(build_model(deployed_config(config)))
    model = build_model(config)
    model.init_weights()
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all('.asr.' in key for key in result.missing_keys)
    expected, found = network_outputs(plain), network_outputs(model)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@each_detector
def test_with_init_identity_a_backbone_starts_exactly_as_the_pretrained_backbone(name, folder, tmp_path):
    init = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False).model.backbone
    init = init.get('backbone', init).get('init_cfg')
    config = small_config(name, folder)
    init_default_scope('mmdet')
    plain = randomize(MODELS.build(deployed_config(config).model.backbone))
    plain.eval()
    prefix = (init or {}).get('prefix', '')
    torch.save(
        {'state_dict': {prefix + key: value for key, value in plain.state_dict().items()}},
        tmp_path / 'plain.pth',
    )
    backbone = config.model.backbone
    init = {**(init or {'type': 'Pretrained'}), 'checkpoint': str(tmp_path / 'plain.pth')}
    backbone.get('backbone', backbone).init_cfg = init
    model = MODELS.build(backbone)
    model.init_weights()
    model.eval()
    x = torch.rand(1, 3, 64, 64)
    for found, expected in zip(model(x), plain(x), strict=True):
        assert torch.equal(found, expected)
