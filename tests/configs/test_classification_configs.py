"""The papers' classification experiments: networks, recipes, and two training iterations of every config."""

import argparse
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import CIFAR10
from torch import nn

import mmasr
from mmasr.convolutions import DBB, OREPA, XVolution
from mmasr.convolutions.dynamic import SelfAttention
from mmasr.core.host import Host
from mmasr.experiments.noise import NoisyBN
from mmasr.openmmlab.arguments import add_arguments
from mmasr.openmmlab.building import build_runner
from mmasr.openmmlab.config import load_config
from mmasr.openmmlab.data_sources import check_data
from mmasr.stripes import attention_modules

FOLDERS = ('cifar10', 'cifar10_images', 'cifar100', 'stl10', 'imagenet')
CONFIGS = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / 'configs' / folder).glob('*.py'))
    if not path.stem.startswith('efficientnet_lite0')  # see test_pretrained_configs.py
]
NETWORKS = sorted((ROOT / 'configs/_base_/networks').glob('*.py'))
each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')

# The paper's Tables 10 and 11: learning rate, weight decay, epochs, batch size, milestones and factor or
# 'cosine'.
STEPS_81 = (0.1, 1e-4, 164, 128, ([81, 122], 0.1))
STEPS_60 = (0.1, 5e-4, 164, 128, ([60, 120, 160], 0.2))
STEP_130 = (0.1, 1e-4, 164, 128, ([130], 0.1))
COSINE = (0.1, 1e-4, 164, 128, 'cosine')
IMAGENET = (0.1, 1e-4, 100, 128, ([30, 60, 90], 0.1))
VIT = (5e-4, 5e-2, 300, 256, 'cosine')
FOUR, TWO = ('', '_se', '_asr_se', '_asr_se_se'), ('', '_asr_se')
# Network -> recipe, number of ASR's sites, variants.
SMALL = {
    'resnet83': (STEPS_81, 27, FOUR),
    'resnet164': (STEPS_81, 54, FOUR),
    'vgg19': (STEPS_60, 16, TWO),
    'shufflenetv2': (STEPS_60, 16, TWO),
    'mobilenet': (STEPS_60, 26, TWO),
    'repvgg_a0': (STEP_130, 22, TWO),
    'repvgg_b3': (STEP_130, 28, TWO),
    **dict.fromkeys(('resnet56', 'resnet110'), (COSINE, 0, ('',))),
    'resnet56_acnet': (COSINE, 27, TWO),
    'resnet110_acnet': (COSINE, 54, TWO),
}
LARGE = {
    'resnet34': (IMAGENET, 16, FOUR),
    'resnet50': (IMAGENET, 16, FOUR),
    'resnet101': (IMAGENET, 33, FOUR),
    'vit_small': (VIT, 24, TWO),
    'vit_base': (VIT, 24, TWO),
    'vit_base_384': ((5e-6, 1e-8, 30, 64, 'cosine'), 24, TWO),
}
# Noise in every BatchNorm (the paper's Table 9): network -> variants.
NOISE = {'resnet164': ('_noise', '_noise_half', '_noise_asr_se', '_noise_asr_ie', '_noise_asr_srm')}
# CIFAR-10 as image files, with the recipe of ResNet83 and ResNet164 in 60 epochs: network -> number of ASR's
# sites, number of convolutions.
IMAGES_RECIPE = (0.1, 1e-4, 60, 128, ([30, 45], 0.1))
IMAGES = {'resnet20': (9, 19), 'resnet56': (27, 55)}
IMAGES_VARIANTS = ('', '_half', '_se', '_eca', '_asr_se', '_asr_se_se', '_asr_ie', '_orepa')
# Variants of ResNet-20 alone, whose branches replace the 3x3 convolutions.
IMAGES_BRANCHES = ('_dbb', '_repvgg', '_qarepvgg')
# Networks with attention of their own at 64 pixels -> number of its modules.
MOBILE_RECIPE = (2e-3, 0.05, 30, 128, 'cosine')
MOBILE = {'mobilenet_v3_small': 9, 'efficientnet_b0': 16}
# OREPA's networks, all with the same recipe on 4 GPUs: variant -> number of convolutions with branches.
ONLINE_RECIPE = (0.1, 1e-4, 120, 64, 'cosine')
ONLINE = {
    'resnet18': {'_120e': 0, '_orepa': 17, '_dbb': 16},
    'resnet34': {'_120e': 0, '_orepa': 33, '_dbb': 32},
    'resnet50': {'_120e': 0, '_orepa': 53, '_dbb': 16},
    'resnet101': {'_120e': 0, '_orepa': 104, '_dbb': 33},
    'resnext50': {'_120e': 0, '_orepa': 53, '_dbb': 16},
    'wideresnet18_w96': {'_120e': 0, '_orepa': 17, '_dbb': 16},
    'wideresnet18_w128': {'_120e': 0, '_orepa': 17, '_dbb': 16},
    **{f'repvgg_a{i}': {'_120e': 0, '_orepa': 22} for i in range(3)},
}
# X-volution with MMPretrain's recipe on 8 GPUs: network -> number of X-volutions in each stage.
MMPRETRAIN = (0.1, 1e-4, 100, 32, ([30, 60, 90], 0.1))
STAGES = {'resnet34': (6, 8, 12, 6), 'resnet50': (3, 4, 6, 3)}
XVOLUTION = {
    name: {
        '_xvolution' + ('' if stage == 3 else f'_stage{stage}'): count
        for stage, count in enumerate(counts, 1)
    }
    for name, counts in STAGES.items()
}


def networks(folder):
    if folder == 'cifar10_images':
        resnets = {name: (IMAGES_RECIPE, sites, IMAGES_VARIANTS) for name, (sites, _) in IMAGES.items()}
        resnets['resnet20'] = (*resnets['resnet20'][:2], IMAGES_VARIANTS + IMAGES_BRANCHES)
        return resnets | {name: (MOBILE_RECIPE, count, ('',)) for name, count in MOBILE.items()}
    return LARGE if folder == 'imagenet' else SMALL


def network_and_variant(stem):
    variants = r'(?:_asr_se)?(?:_se)?|_eca|_asr_ie|_half|_120e|_orepa|_dbb|_(?:qa)?repvgg|_noise\w*|_dia'
    variants += r'|_xvolution(?:_stage\d)?'
    return re.fullmatch(rf'(.+?)({variants})', stem).groups()


def expectations(path):
    """Return the recipe of a config, and the numbers of its ASRs and of its convolutions with branches."""
    name, variant = network_and_variant(path.stem)
    if path.parent.name == 'cifar10_images' and variant in ('_orepa', *IMAGES_BRANCHES):
        return IMAGES_RECIPE, 0, IMAGES[name][1]
    if variant in ONLINE.get(name, ()):
        return ONLINE_RECIPE, 0, ONLINE[name][variant]
    if variant in XVOLUTION.get(name, ()):
        return MMPRETRAIN, 0, XVOLUTION[name][variant]
    recipe, sites, _ = networks(path.parent.name)[name]
    return recipe, sites * ('_asr' in variant), 0


def test_the_configs_are_complete():
    expected = {
        (folder, f'{name}{variant}')
        for folder in FOLDERS
        for name, (*_, variants) in networks(folder).items()
        for variant in variants
    }
    expected |= {('cifar100', f'{name}{variant}') for name, variants in NOISE.items() for variant in variants}
    expected |= {(folder, 'resnet164_dia') for folder in ('cifar100', 'stl10')}
    expected |= {
        ('imagenet', f'{name}{variant}')
        for table in (ONLINE, XVOLUTION)
        for name, variants in table.items()
        for variant in variants
    }
    assert {(path.parent.name, path.stem) for path in CONFIGS} == expected


@pytest.mark.parametrize('path', NETWORKS, ids=lambda path: path.stem)
def test_the_config_of_a_network_has_no_recipe(path):
    assert set(Config.fromfile(path)) == {'model', 'custom_imports'}


@each_config
def test_a_config_inherits_only_from_the_same_network(path):
    for base in re.findall(r"'(\w+)\.py'", path.read_text()):  # in the same folder
        assert network_and_variant(base)[0] == network_and_variant(path.stem)[0]


@each_config
def test_the_recipe_is_that_of_the_paper(path):
    config = load_config(path)
    folder = path.parent.name
    recipe, *_ = expectations(path)
    rate, decay, epochs, images, schedule = recipe
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, config.train_cfg.max_epochs) == (rate, decay, epochs)
    assert optimizer.type == ('AdamW' if recipe is MOBILE_RECIPE or 'vit' in path.stem else 'SGD')
    assert optimizer.get('momentum', 0.9) == 0.9
    batch = config.train_dataloader.batch_size
    assert batch == (16 if folder == 'stl10' else images)
    gpus = 4 if recipe is ONLINE_RECIPE else 8 if recipe is MMPRETRAIN else 1
    assert config.auto_scale_lr.base_batch_size == batch * gpus
    schedulers = (
        config.param_scheduler if isinstance(config.param_scheduler, list) else [config.param_scheduler]
    )
    if schedule == 'cosine':
        assert schedulers[-1].type == 'CosineAnnealingLR'
        start = schedulers[-1].get('begin', 0)
        assert start + schedulers[-1].get('T_max', epochs - start) == epochs  # by default to the end
    else:
        assert (schedulers[-1].milestones, schedulers[-1].gamma) == schedule


@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if path.stem.endswith('_half')], ids=lambda path: path.stem
)
def test_a_control_is_the_plain_network_with_scales_of_a_half_at_the_sites(path):
    networks = []
    for name in (
        path,
        path.with_name(path.name.replace('_half', '')),
        path.with_name(path.name.replace('_half', '_asr_se')),
    ):
        config = load_config(name)
        init_default_scope(config.default_scope)
        networks.append(MODELS.build(config.pop('model')).backbone)
        networks[-1].init_weights()
    control, plain, asr = networks
    sites = [name for name, module in asr.named_modules() if isinstance(module, Host)]
    for name, weight in control.state_dict().items():
        at_site = name.removesuffix('.weight') in sites
        ones = plain.state_dict()[name]
        if name.endswith('.weight') and weight.dim() == 1:
            torch.testing.assert_close(weight, torch.full_like(ones, 0.5) if at_site else ones)
    assert len(sites) > 1


def test_orepas_recipe_warms_up_and_applies_weight_decay_to_kernels_only():
    config = load_config(ROOT / 'configs/imagenet/resnet18_dbb.py')
    assert (config.param_scheduler[0].type, config.param_scheduler[0].end) == ('LinearLR', 5)
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decays = {parameter: group['weight_decay'] for group in groups for parameter in group['params']}
    for parameter in model.parameters():
        assert decays[parameter] == (0 if parameter.dim() == 1 else 1e-4)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Return a folder with a few random images in the published format of each dataset."""
    folder = tmp_path_factory.mktemp('classification')
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 256, shape, np.uint8)

    cifar = {'cifar10/cifar-10-batches-py': 'labels', 'cifar100/cifar-100-python': 'fine_labels'}
    parts = {
        'data_batch_1': 4,
        **{f'data_batch_{i}': 0 for i in (2, 3, 4, 5)},
        'test_batch': 2,
        'train': 4,
        'test': 2,
    }
    for name, key in cifar.items():
        (folder / 'data' / name).mkdir(parents=True)
        for part, count in parts.items():
            content = {'data': noise(count, 3 * 32 * 32), key: list(range(count))}
            (folder / 'data' / name / part).write_bytes(pickle.dumps(content))
    (folder / 'data/stl10').mkdir()
    for part, count in (('train', 4), ('test', 2)):
        noise(count, 3, 96, 96).tofile(folder / f'data/stl10/{part}_X.bin')
        np.arange(1, count + 1, dtype=np.uint8).tofile(folder / f'data/stl10/{part}_y.bin')
    for part, count in (('train', 4), ('test', 2)):
        for label in range(count):
            (folder / f'data/cifar10-images/{part}/class{label}').mkdir(parents=True)
            cv2.imwrite(str(folder / f'data/cifar10-images/{part}/class{label}/0000.jpg'), noise(32, 32, 3))
    (folder / 'data/imagenet/meta').mkdir(parents=True)
    for part, count in (('train', 4), ('val', 2)):
        (folder / 'data/imagenet' / part).mkdir()
        names = [f'{i}.JPEG' for i in range(count)]
        for name in names:
            cv2.imwrite(str(folder / 'data/imagenet' / part / name), noise(400, 500, 3))
        (folder / f'data/imagenet/meta/{part}.txt').write_text(
            ''.join(f'{name} {i}\n' for i, name in enumerate(names))
        )
    return folder


class OneEpoch(Hook):
    """Hook that ends the training after one epoch and records the losses."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = True


def check_parts(model, path):
    """Check that a network has the ASRs and convolutions with branches that its config's name implies."""
    _, asrs, convolutions = expectations(path)
    variant = network_and_variant(path.stem)[1]
    computed = [module.reparameterization() for module in model.modules() if isinstance(module, Host)]
    assert sum(isinstance(child, mmasr.ASR) for child in computed) == asrs
    assert sum(isinstance(child, OREPA) for child in computed) == convolutions * (variant == '_orepa')
    assert sum(isinstance(module, DBB) for module in model.modules()) == convolutions * (variant == '_dbb')
    assert sum(
        isinstance(module, XVolution) for module in model.modules()
    ) == convolutions * variant.startswith('_xvolution')


def is_trained(path):
    """Return whether a config is trained here; the models of the others differ only in size or classes."""
    if path.parent.name == 'imagenet':
        return not re.fullmatch(
            r'(wideresnet18|repvgg_a[12]|resnet34|resnet101|resnext50|vit_base)\w*', path.stem
        )
    if path.stem.startswith('repvgg_b3'):
        return False
    return path.parent.name not in ('cifar10', 'stl10') or path.stem.startswith('resnet83')


def check_attention(model, path):
    """Check that a network has the ordinary attention and the classes that its config's name implies."""
    name, variant = network_and_variant(path.stem)
    ordinary = variant in ('_se', '_eca', '_asr_se_se', '_dia') or name in MOBILE
    assert len(attention_modules(model)) == (networks(path.parent.name)[name][1] if ordinary else 0)
    assert model.head.num_classes == {'cifar100': 100, 'imagenet': 1000}.get(path.parent.name, 10)


@pytest.mark.parametrize(
    'path',
    [path for path in CONFIGS if not is_trained(path)],
    ids=lambda path: f'{path.parent.name}/{path.stem}',
)
def test_a_config_builds_the_network_of_its_name(path):
    config = Config.fromfile(path, format_python_code=False)
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    check_parts(model, path)
    check_attention(model, path)


@pytest.mark.parametrize(
    'path',
    [path for path in CONFIGS if is_trained(path)],
    ids=lambda path: f'{path.parent.name}/{path.stem}',
)
def test_a_config_trains_two_iterations(path, data, monkeypatch, tmp_path):
    monkeypatch.chdir(data)
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)  # the checksums of the real files
    folder = path.parent.name
    # Formatting would take as long as two iterations of a small network.
    config = Config.fromfile(path, format_python_code=False)
    check_data(config, 'train_dataloader', 'val_dataloader', 'test_dataloader')
    # A side that leaves the last BatchNorm more than the two values of the batch.
    side = 16 if 'repvgg_b3' in path.stem else 64 if folder == 'imagenet' else 32
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[key].update(batch_size=2, num_workers=0, persistent_workers=False)
        *transforms, pack = config[key].dataset.pipeline
        if 'vit' in path.stem:  # it accepts a single image size
            sizes = [
                size
                for transform in transforms
                for name, size in transform.items()
                if name in ('scale', 'crop_size')
            ]
            assert sizes[-1] == config.model.backbone.img_size
        # Resize the recipe's images at the end, because large images take most of the time.
        pipeline = [*transforms, {'type': 'Resize', 'scale': side}, pack]
        indices = 4 if key == 'train_dataloader' else 2
        config[key].dataset.update(pipeline=pipeline, indices=indices, serialize_data=False)
    if 'vit' in path.stem:
        config.model.backbone.img_size = side
    config.update(work_dir=str(tmp_path), load_from=None, log_level='ERROR', randomness={'seed': 0})
    config.default_hooks.update(checkpoint=None, logger=None)
    config.train_cfg.val_interval = 1
    runner = build_runner(config)
    end = OneEpoch()
    runner.register_hook(end)
    runner.train()
    assert runner.iter == 2
    assert np.isfinite(end.losses).all()
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() in (
        0,
        50,
        100,
    )  # percent of two images

    check_parts(runner.model, path)
    check_attention(runner.model, path)


def first_config(folder):
    return next(path for path in CONFIGS if path.parent.name == folder)


@pytest.mark.parametrize(
    ('folder', 'missing', 'source'),
    [
        (
            'cifar10',
            'data/cifar10/cifar-10-batches-py',
            'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
        ),
        (
            'cifar100',
            'data/cifar100/cifar-100-python',
            'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz',
        ),
        ('stl10', 'data/stl10/train_y.bin', 'https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz'),
        ('imagenet', 'data/imagenet', 'https://image-net.org/download-images'),
    ],
)
def test_missing_data_is_reported_with_its_source(tmp_path, refusal, folder, missing, source):
    config = first_config(folder)
    message = refusal('train.py', config, cwd=tmp_path)
    assert message.startswith(f'error: {missing} does not exist; {config} needs it for its train_dataloader.')
    assert source in message


@pytest.mark.parametrize('folder', ['cifar10', 'cifar100'])
def test_missing_cifar_data_is_accepted_with_the_suggested_options(tmp_path, refusal, folder):
    message = refusal('train.py', first_config(folder), cwd=tmp_path)
    config = load_config(first_config(folder))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    (options,) = re.findall(r'--cfg-options (train_dataloader.dataset.download=.+)', message)
    config.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)
    check_data(config, 'train_dataloader', 'val_dataloader', 'val_evaluator')


PAGE = (ROOT / 'docs/experiments.md').read_text()
COMMANDS = re.findall(
    r'^python tools/train\.py (configs/\S+) --work-dir work_dirs/(\S+) --cfg-options (.+)$', PAGE, re.M
)


def test_the_configs_on_the_page_exist():
    names = re.findall(r'configs/[\w/]+\.py', PAGE)
    assert len(names) > 10
    assert all((ROOT / name).is_file() for name in names)


@pytest.mark.parametrize(('config', 'name', 'options'), COMMANDS, ids=[name for _, name, _ in COMMANDS])
def test_the_options_on_the_page_have_the_described_effect(config, name, options):
    """They give the paper's Tables 7, 8, 9, 13 and 14, and other attention."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = load_config(ROOT / config)
    config.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)
    backbone = MODELS.build(config.model.backbone)
    asrs = [module.asr for module in backbone.modules() if isinstance(module, Host)]
    assert all(len(asr.attention) == (2 if name == 'delta_2' else 1) for asr in asrs)
    assert all(isinstance(asr.psi, nn.Parameter) == ('fixed' not in name) for asr in asrs)
    if name == 'fixed_normal':
        values = torch.cat([asr.psi.flatten() for asr in asrs])
        assert values.std().item() == pytest.approx(0.1, rel=0.05)  # of 12096 values
    else:
        psi = {'fixed_0.3': 0.3, 'psi_0.6': 0.6, 'vit_small_asr_eca': 1e-3}.get(name, 0.1)
        assert all(asr.psi.eq(psi).all() for asr in asrs)
    kappa = next(
        (getattr(mmasr, kappa.upper()) for kappa in ('spa', 'ie', 'srm', 'eca') if kappa in name.split('_')),
        mmasr.SE,
    )
    assert all(isinstance(asr.attention[0], kappa) for asr in asrs)
    assert len(asrs) == (0 if name == 'spa' else 16 if 'resnet50' in name else 24 if 'vit' in name else 54)
    noise = {(module.n_a, module.n_b) for module in backbone.modules() if isinstance(module, NoisyBN)}
    assert noise == ({(0.5, 0.2)} if name == 'noise_0.5_0.2' else set())
    ordinary = [
        module for key, module in backbone.named_modules() if isinstance(module, kappa) and '.asr.' not in key
    ]
    assert len(ordinary) == (54 if name in ('spa', 'asr_spa_spa') else 0)


@pytest.mark.parametrize(
    ('config', 'name', 'options'),
    re.findall(
        r'^tools/dist_train\.sh (configs/\S+) 8 --work-dir work_dirs/(\S+) --cfg-options (.+)$', PAGE, re.M
    ),
)
def test_the_options_of_xvolution_on_the_page_have_the_described_effect(config, name, options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = load_config(ROOT / config)
    config.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)
    layers = [
        module for module in MODELS.build(config.model.backbone).modules() if isinstance(module, XVolution)
    ]
    assert len(layers) == 6
    assert all(isinstance(layer.dynamic.branch, SelfAttention) for layer in layers)
    assert all((layer.static is None) == (name == 'sa_only') for layer in layers)


def test_all_commands_with_options_are_on_the_page():
    assert {name for _, name, _ in COMMANDS} == {
        *(
            'asr_ie',
            'asr_srm',
            'asr_spa',
            'spa',
            'asr_spa_spa',
            'resnet50_asr_eca',
            'resnet50_asr_srm',
            'vit_small_asr_eca',
        ),
        *('delta_2', 'fixed_0.3', 'fixed_normal', 'psi_0.6', 'noise_0.5_0.2'),
    }
