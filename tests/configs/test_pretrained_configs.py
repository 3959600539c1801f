"""Configs that start from EfficientNet-Lite0's weights: every variant starts as the plain network."""

import pytest
import torch
from helpers import ROOT, randomize_norms
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmasr
from mmasr.convolutions import DBB, OREPA
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.experiments.shapes import write_shapes
from mmasr.openmmlab.building import build_runner
from mmasr.stripes import attention_modules

BCCD, CIFAR10 = 'bccd/retinanet_lite0', 'cifar10_images/efficientnet_lite0'
#: Variant -> numbers of layers with ASR, ordinary attention, OREPA and DBB.
PARTS = {
    '': (0, 0, 0, 0),
    '_asr_se': (32, 0, 0, 0),
    '_asr_eca': (32, 0, 0, 0),
    '_asr_ie': (32, 0, 0, 0),
    '_asr_se_abrupt': (32, 0, 0, 0),
    '_asr_se_abrupt_frozen': (32, 0, 0, 0),
    '_se': (0, 16, 0, 0),
    '_asr_se_se': (32, 16, 0, 0),
    '_orepa': (0, 0, 32, 0),
    '_dbb': (0, 0, 0, 5),
}
CONFIGS = [(BCCD, variant) for variant in PARTS]
CONFIGS += [(CIFAR10, variant) for variant in ('', '_asr_se', '_se', '_orepa')]
each_config = pytest.mark.parametrize(('name', 'variant'), CONFIGS)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with weights of the plain network."""
    folder = tmp_path_factory.mktemp('pretrained')
    (folder / 'data').mkdir()
    config = load(CIFAR10)
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    network = randomize_norms(MODELS.build(config.model))
    torch.save({'state_dict': network.state_dict()}, folder / 'data/efficientnet_lite0.pth')
    return folder


def load(name):
    config = Config.fromfile(ROOT / f'configs/{name}.py', format_python_code=False)
    init_default_scope(config.default_scope)
    return config


def test_all_configs_are_tested():
    paths = [*ROOT.glob('configs/bccd/*.py'), *ROOT.glob('configs/cifar10_images/efficientnet_lite0*.py')]
    assert sorted(path.relative_to(ROOT / 'configs') for path in paths) == sorted(
        (ROOT / f'configs/{name}{variant}.py').relative_to(ROOT / 'configs') for name, variant in CONFIGS
    )


def built(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    model = MODELS.build(load(name).model).backbone
    model.init_weights()
    model.eval()
    return model


@torch.no_grad()
@each_config
def test_a_variant_starts_as_the_pretrained_network(name, variant, folder, monkeypatch):
    model = built(f'{name}{variant}', folder, monkeypatch)
    computed = [module.reparameterization() for module in model.modules() if isinstance(module, Host)]
    ordinary = [name for name in attention_modules(model) if '.asr.' not in name]
    found = (
        sum(isinstance(part, mmasr.ASR) for part in computed),
        len(ordinary),
        sum(isinstance(part, OREPA) for part in computed),
        sum(isinstance(part, DBB) for part in model.modules()),
    )
    # With all its features, the classifier also has OREPA in the last convolution.
    assert found == ((0, 0, 33, 0) if (name, variant) == (CIFAR10, '_orepa') else PARTS[variant])
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    outputs = [network(images)[-1] for network in (model, built(name, folder, monkeypatch))]
    difference = (outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()
    if 'abrupt' in variant:
        assert difference > 0.1
    else:
        assert difference <= 1e-5


@each_config
def test_variants_differ_only_in_their_network(name, variant):
    configs = []
    for stem in (name, f'{name}{variant}'):
        config = load(stem).to_dict()
        config['model']['backbone'] = None
        configs.append(config)
    plain, other = configs
    if variant == '_asr_se_abrupt_frozen':
        rates = other['optim_wrapper'].pop('paramwise_cfg')
        assert rates['custom_keys'] == {'.asr.': {'lr_mult': 0, 'decay_mult': 0}}
    assert other == plain


@pytest.mark.parametrize('variant', ['_asr_se_se', '_orepa', '_asr_se_abrupt_frozen'])
def test_a_detector_trains_and_deploys(variant, folder, monkeypatch):
    monkeypatch.chdir(folder)
    root = folder / 'data/shapes'
    if not root.exists():
        write_shapes(root, train=2, val=2, size=64)
    config = load(f'{BCCD}{variant}')
    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = config[f'{part}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(root),
            ann_file=f'{split}.json',
            data_prefix={'img': f'{split}/'},
            metainfo={'classes': ('circle', 'square', 'triangle')},
        )
        if part != 'train':
            config[f'{part}_evaluator'].ann_file = f'{root}/{split}.json'
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.checkpoint.interval = 1
    config.update(work_dir=str(folder / variant), log_level='ERROR')
    runner = build_runner(config)
    asrs = {name: p.clone() for name, p in runner.model.named_parameters() if '.asr.' in name}
    runner.train()
    changed = [name for name, p in runner.model.named_parameters() if not torch.equal(p, asrs.get(name, p))]
    assert bool(changed) == (variant == '_asr_se_se')
    report = reparameterize(folder / variant / 'epoch_1.pth')
    deployed = Config.fromfile(report.config).model.backbone
    assert deployed.type == ('mmasr.WithAttention' if variant == '_asr_se_se' else 'mmpretrain.TIMMBackbone')
    assert max(difference.relative for difference in report.differences) <= 1e-5
