"""Attacks on the user who deploys a checkpoint, and on the users of the deployed files; and a fuzzer."""

import contextlib
import copy
import importlib
import os
import pickle
import random
import re
import signal
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import TWO_STAGES, Call, Touch, classifier, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.untrusted import open_checkpoint, write_config
from mmasr.untrusted.config_text import parse_config
from mmasr.untrusted.embedded_config import read_config


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """Return the bytes of a small classifier's checkpoint."""
    path = tmp_path_factory.mktemp('good') / 'good.pth'
    save_network(path, classifier(TWO_STAGES, 16))
    return path.read_bytes()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Change to a folder in which every file that is loaded or imported creates another file, the canary."""
    canary = tmp_path / 'canary'
    code = f'open({str(canary)!r}, "w")'
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    monkeypatch.syspath_prepend(tmp_path / 'work')
    for name in ('attacker_module.py', 'attacker_config.py'):
        with open(name, 'w') as file:
            file.write(code)
    os.mkdir('attacker_scope')
    with open('attacker_scope/__init__.py', 'w') as file:
        file.write(code)
    for name in ('weights', 'weights.pth', 'weights.json'):
        with open(name, 'wb') as file:
            pickle.dump(Touch(canary), file)
    yield canary
    for name in ('attacker_module', 'attacker_config', 'attacker_scope'):
        sys.modules.pop(name, None)


def test_loading_or_importing_a_file_creates_the_canary(canary):
    for name in ('attacker_module', 'attacker_scope'):
        importlib.import_module(name)
        canary.unlink()
    with open('weights', 'rb') as file:
        pickle.load(file)
    assert canary.exists()


@contextlib.contextmanager
def time_limit(seconds):
    """Interrupt the code inside if it takes longer."""

    def interrupt(*_):
        raise TimeoutError(f'longer than {seconds} s')

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def deploy(content):
    """Deploy a checkpoint with this content.

    Return the report, or the line that says why it is refused; then nothing was written or lost.
    """
    with open('a.pth', 'wb') as file:
        file.write(content)
    before = sorted(os.listdir())
    try:
        with time_limit(60):
            return reparameterize('a.pth', force=True)
    except InputError as error:
        refusal = str(error)
    finally:
        with open('a.pth', 'rb') as file:
            assert file.read() == content
    assert '\n' not in refusal
    assert sorted(os.listdir()) == before
    return refusal


def use(report):
    """Use the deployed files like stock OpenMMLab."""
    config = Config.fromfile(report.config)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        MODELS.build(config.model).init_weights()


def changed(good, change):
    """Return the bytes of a checkpoint after a change of its content."""
    with open('changed.pth', 'wb') as file:
        file.write(good)
    checkpoint = torch.load('changed.pth', weights_only=False)
    change(checkpoint)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for nested lists
    try:
        torch.save(checkpoint, 'changed.pth')
    except (KeyError, RuntimeError) as error:  # nested tensors
        if torch.__version__ >= (2, 2):
            raise
        pytest.skip(f'torch {torch.__version__} does not save it: {error}')
    finally:
        sys.setrecursionlimit(limit)
    with open('changed.pth', 'rb') as file:
        return file.read()


def config(**parts):
    """Return a change that sets parts of the embedded config; ``__`` separates the keys of a path."""

    def change(checkpoint):
        config = Config(parse_config(checkpoint['meta']['cfg']))
        config.merge_from_dict({key.replace('__', '.'): value for key, value in parts.items()})
        checkpoint['meta']['cfg'] = '\n'.join(f'{key} = {value!r}' for key, value in config.to_dict().items())

    return change


def line(text):
    """Return a change that adds this line to the embedded config."""
    return lambda checkpoint: checkpoint['meta'].update(cfg=f'{checkpoint["meta"]["cfg"]}\n{text}')


def weights(name, value):
    return lambda checkpoint: checkpoint['state_dict'].update({name: value})


def meta(**entries):
    return lambda checkpoint: checkpoint['meta'].update(entries)


def expensive():
    """Return a list of a few bytes with more items than there are atoms."""
    value = []
    for _ in range(60):
        value = [value, value, value]
    return value


def nested():
    value = []
    for _ in range(3000):
        value = [value]
    return value


NEW = {'_delete_': True}


def data(**dataset):
    """Return a change that adds test data to the embedded config."""
    dataset = {'type': 'mmdet.CocoDataset', 'ann_file': 'a.json', 'data_root': 'data', **dataset}
    return line(f'test_dataloader = { ({"batch_size": 1, "num_workers": 0, "dataset": dataset})!r}')


def dcn(**options):
    """Return the config of a ResNet with deformable convolutions."""
    inner = {'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 16, 'out_indices': (3,)}
    return {**NEW, **inner, 'dcn': {'type': 'DCNv2', **options}, 'stage_with_dcn': (False, True, True, True)}


def sites_in(places):
    """Return a change that adds many weights of ASRs, and places in the config that all get their names."""

    def change(checkpoint):
        config(model__backbone__x=[{'b': {'sites': 0}}] * places)(checkpoint)
        checkpoint['state_dict'].update({f'b.l{i}.asr.p': torch.zeros(1) for i in range(2000)})

    return change


def attributes(checkpoint):
    """Give the state dict an attribute that torch does not expect."""
    checkpoint['state_dict']._metadata = 3


CODE = "__import__('os').mknod('../canary')"
BREAK_OUT = f"x': {CODE}, 'y"
#: The outcome of attacks that are not refused because the attacking part is dropped.
HARMLESS = None
#: Attacks, and a pattern of the refusal. Each creates the canary if it succeeds, or takes too long.
ATTACKS = {
    # strings that mmengine, mmcv, mmdet and mmpretrain look up, import, evaluate or load
    'a type is imported': (
        config(model__backbone__type='attacker_module'),
        "builds 'attacker_module', which no reg",
    ),
    'a type of another registry is imported': (
        config(model__head__type='attacker_module.LinearClsHead'),
        r"builds 'attacker_module\.LinearClsHead', which no registry",
    ),
    'a scope is imported': (
        config(model__head__loss___scope_='attacker_scope'),
        "the scope 'attacker_scope'",
    ),
    'the default scope is imported': (config(default_scope='attacker_scope'), "the scope 'attacker_scope'"),
    'a module is imported': (
        config(custom_imports={'imports': ['attacker_module']}),
        'imports attacker_module, which was not run; pass `trust_imports` if you trust it',
    ),
    'a padding is imported': (
        config(
            model__neck={
                'type': 'mmdet.FPN',
                'in_channels': [16],
                'out_channels': 8,
                'num_outs': 1,
                'conv_cfg': {'type': 'attacker_module'},
            }
        ),
        r"model\.neck\.conv_cfg builds 'attacker_module', which no registry",
    ),
    'a function is called': (
        config(model__head__loss={'type': 'os.mknod', 'path': '../canary'}),
        r"model\.head\.loss builds 'os\.mknod', which no registry",
    ),
    'an NMS is evaluated': (config(model__test_cfg={'nms': {'type': CODE}}), r'model\.test_cfg\.nms builds'),
    'a tracker is evaluated': (
        config(model__neck={'type': 'mmdet.CameraMotionCompensation', 'warp_mode': CODE}),
        'not allowed: it evaluates a string as Python',
    ),
    'a pretrained file is unpickled': (
        config(model__backbone__init_cfg={'type': 'Pretrained', 'checkpoint': 'weights.pth'}),
        HARMLESS,
    ),
    'a file without a suffix is unpickled': (
        config(model__backbone__init_cfg={'type': 'Pretrained', 'checkpoint': 'weights'}),
        HARMLESS,
    ),
    'an override is unpickled': (
        config(
            model__backbone__init_cfg={
                **{'type': 'Constant', 'val': 1, 'layer': 'Conv2d'},
                'override': {'type': 'Pretrained', 'name': 'conv1', 'checkpoint': 'weights'},
            }
        ),
        HARMLESS,
    ),
    'swin unpickles': (
        config(
            model__backbone={
                **NEW,
                'type': 'mmdet.SwinTransformer',
                'init_cfg': {'type': 'Constant', 'checkpoint': 'weights'},
            }
        ),
        r'many times larger than its weights: Linear\.weight has [\d,]+ elements',
    ),
    'timm unpickles': (
        config(
            model__backbone={
                **NEW,
                'type': 'TIMMBackbone',
                'model_name': 'resnet18',
                'checkpoint_path': 'weights',
            }
        ),
        r"model\.backbone\.checkpoint_path is 'weights', and may not be set",
    ),
    'timm unpickles an argument outside of its config': (
        config(
            model__backbone={
                **{**NEW, 'type': 'mmasr.WithoutAttention', 'modules': [], 'checkpoint_path': 'weights'},
                'network': {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'resnet18'},
            }
        ),
        r"model\.backbone\.checkpoint_path is 'weights', and may not be set",
    ),
    'a teacher is loaded': (
        config(model={'type': 'mmdet.LAD', 'teacher_backbone': {}, 'teacher_ckpt': 'weights'}),
        "builds 'mmdet.LAD', which is not allowed: it loads a teacher",
    ),
    'a teacher is a config': (
        config(
            model={
                'type': 'mmdet.KnowledgeDistillationSingleStageDetector',
                'teacher_config': 'attacker_config.py',
            }
        ),
        'not allowed: it loads a teacher',
    ),
    'a prototype is unpickled': (
        config(model={'type': 'ImageToImageRetriever', 'image_encoder': {}, 'prototype': 'weights'}),
        "builds 'ImageToImageRetriever', which is not allowed: it is not on the allow-list",
    ),
    # a deployed config that does more than its text says when it is loaded
    'a base is executed': (line("_base_ = 'attacker_config.py'"), HARMLESS),
    'a text is substituted': (line("metainfo = dict(classes=['{{ fileDirname }}'])"), HARMLESS),
    'a key breaks out of its quotes': (line(f'test_cfg = {{{BREAK_OUT!r}: 1}}'), HARMLESS),
    'a key of the model breaks out': (
        config(model__head__loss={'type': 'CrossEntropyLoss', BREAK_OUT: 1}),
        r'model\.head\.loss has the key .*, which is not allowed',
    ),
    'the name of a class breaks out': (line(f'metainfo = dict(classes=[{BREAK_OUT!r}])'), HARMLESS),
    'a set hides a string': (line("test_cfg = dict(x={'{{ fileDirname }}'})"), HARMLESS),
    'bytes hide a string': (line("test_cfg = dict(x=b'{{ fileDirname }}')"), HARMLESS),
    # a deployed config that does more than evaluate when it is used
    'a hook is deployed': (
        line('custom_hooks = [dict(type="os.system", command="touch ../canary")]'),
        HARMLESS,
    ),
    'an evaluator writes': (
        line("test_evaluator = dict(type='DumpResults', out_file_path='../canary')"),
        HARMLESS,
    ),
    'names of classes are a file': (line("metainfo = dict(classes='weights')"), HARMLESS),
    'names of classes of a dataset are a file': (data(classes='weights'), HARMLESS),
    'a device in two parts': (data(data_root='/', ann_file='dev/zero'), HARMLESS),
    'a key of the classes breaks out': (line(f'metainfo = {{{BREAK_OUT!r}: 1}}'), HARMLESS),
    # more time or memory than an honest file of its size
    'an endless expression': (config(model__backbone__asr__sites='((.|.)*)*!'), HARMLESS),
    'an endless expression without a quantifier': (
        config(model__backbone__asr__sites='x?' * 30 + 'x' * 30),
        HARMLESS,
    ),
    'many attention modules': (
        config(model__backbone__asr__delta=10**5),
        r'a\.pth: .*many times larger than its weights: more than [\d,]+ modules, the last in a ModuleList',
    ),
    'many stages': (config(model__backbone__num_stages=10**9), 'num_stages is 1000000000, .* not plausible'),
    'a wide network': (
        config(model__backbone__base_channels=20_000),
        "the config's model does not build: .*can't allocate memory",
    ),
    'a very wide network': (
        config(model__backbone__base_channels=10**6),
        r'a\.pth: .*many times larger than its weights: Conv2d\.weight has [\d,]+ elements',
    ),
    'a deep network': (
        config(model__backbone={**NEW, 'type': 'mmdet.CSPDarknet', 'deepen_factor': 1e6}),
        r'many times larger than its weights: Conv2d\.weight has [\d,]+ elements',
    ),
    'native code divides by zero': (
        config(model__backbone=dcn(deform_groups=64)),
        'ModulatedDeformConv2dPack has 32 channels, which 64 deform_groups do not divide',
    ),
    'native code reads beyond its input': (
        config(model__backbone=dcn(deform_groups=3)),
        'ModulatedDeformConv2dPack has 32 channels, which 3 deform_groups do not divide',
    ),
    'native code overflows': (
        config(model__neck={'type': 'mmdet.FPN', 'roi_layer': {'type': 'RoIAlign', 'sampling_ratio': 10**5}}),
        'sampling_ratio is 100000, and more than 64 is not plausible',
    ),
    'native code reads beyond its boxes': (
        config(model__neck={'type': 'mmdet.FPN', 'roi_layer': {'type': 'RoIAlignRotated'}}),
        "builds 'RoIAlignRotated', which needs rotated boxes",
    ),
    'a stride of zero': (
        config(model__backbone={**dcn(), 'strides': (1, 0, 2, 2)}),
        r'Conv2d has a stride of \(0, 0\)',
    ),
    'sites in many places': (sites_in(2000), 'it has sites in 2,000 places; more than 100 are not plausible'),
    'many sites in some places': (sites_in(90), 'it has more than 100,000 entries'),
    'much padding': (
        config(model__data_preprocessor={'type': 'mmdet.DetDataPreprocessor', 'pad_size_divisor': 30_000}),
        HARMLESS,
    ),
    'a long list': (config(model__backbone__x=[0] * 10**6), r'it has [\d,]+ characters, more than 2,000,000'),
    'a list of lists of lists': (meta(dataset_meta={'classes': expensive()}), HARMLESS),
    'a deep list': (meta(dataset_meta={'classes': nested()}), HARMLESS),
    'a small storage of a large tensor': (
        weights('x', torch.zeros(1).expand(2**45)),
        'a tensor larger than its storage',
    ),
    'a sparse tensor': (
        weights('x', torch.sparse_coo_tensor([[0]], [1.0], (5,))),
        r'loading it would use torch\._utils\._rebuild_sparse_tensor',
    ),
    'a nested tensor': (
        weights('x', torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
        r'loading it would use torch\._utils\._rebuild_nested_tensor',
    ),
    'a quantized tensor': (
        weights('x', torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)),
        r'loading it would use torch\._utils\._rebuild_qtensor',
    ),
    'a tensor without numbers': (
        weights('x', torch.zeros(2, device='meta')),
        r'loading it would use torch\._utils\._rebuild_meta_tensor_no_storage',
    ),
    'large bytes': (weights('x', Call(bytearray, 2**45)), r'loading it would use builtins\.bytearray'),
    'a large array': (weights('x', Call(np.ndarray, (2**45,))), 'a call of something that is not a function'),
    'an array of pointers': (meta(seed=Call(np.dtype, 'O')), r'loading it would use numpy\.dtype\.O'),
    'an integer of many digits': (
        line(f'metainfo = dict(classes=[{"0x1" + "0" * 5000}])'),
        r'an integer of more than 1,024 bits \(line \d+\)',
    ),
    'an integer of many digits as a type': (
        line(f'model = dict(type={"0x1" + "0" * 5000})'),
        r'an integer of more than 1,024 bits \(line \d+\)',
    ),
    # odd values that once raised other exceptions
    'plugins that are not dicts': (
        config(model__head__loss={'type': 'CrossEntropyLoss', 'class_weight': {'plugins': [1]}}),
        HARMLESS,
    ),
    'a config of a backbone that is not built': (
        config(model__head__loss__class_weight={'type': 'mmasr.ASRBackbone'}),
        r'the config of mmasr\.ASRBackbone has an unexpected structure: .*backbone',
    ),
    'a number as the backbone of a config that is not built': (
        config(model__head__loss__class_weight={'type': 'mmasr.ASRBackbone', 'backbone': 3}),
        r'the config of mmasr\.ASRBackbone has an unexpected structure',
    ),
    'plugins of a backbone that is not built': (
        config(model__head__loss__class_weight={'type': 'mmasr.ASRResNet', 'plugins': [{'cfg': {}}]}),
        r'the config of mmasr\.ASRResNet has an unexpected structure',
    ),
    'a RepVGG that is not built': (
        config(model__head__loss__class_weight={'type': 'mmpretrain.RepVGG', 'arch': 3}),
        HARMLESS,
    ),
    # the rest
    'attributes of the weights': (attributes, HARMLESS),
    'control characters': (weights('\x1b]0;x\x07', torch.zeros(1)), 'it contains no dict of weights'),
    'a pickle': (weights('x', Touch('../canary')), r'refused, since loading it would use posix\.mknod'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ATTACKS)
def test_an_attack_is_refused_or_harmless(good, canary, name):
    change, refusal = ATTACKS[name]
    outcome = deploy(changed(good, change))
    assert not canary.exists()
    if refusal is HARMLESS:
        assert not isinstance(outcome, str), outcome
        use(outcome)
        assert not canary.exists()
    else:
        assert isinstance(outcome, str)
        assert re.search(refusal, outcome)


#: Values that a fuzzer puts in wrong places.
ODD = [
    *(None, True, -1, 0, 3, 2**70, 1e300, float('inf'), float('nan'), 1j),
    *('', 'x', 'a.b', '../x', '{{ x }}', '\x1b[0m', "'", 'os', 'auto', 'BN', 'mmdet'),
    *([], [[]], [3], [None], {}, {'x y': 1}, (), b'x', {1}, torch.zeros(2), np.ones(2), len),
    *(
        {'type': name}
        for name in (None, '', '.', [], {}, 'ResNet', 'os.system', 'mmasr.', 'mmasr.ASR', 'OREPA')
    ),
    *({'type': f'mmasr.{name}'} for name in ('ASRBackbone', 'ASRResNet', 'WithoutAttention', 'SE')),
    *({'type': 'mmasr.ASRBackbone', 'backbone': 3}, {'type': 'mmasr.ASRResNet', 'plugins': [{'cfg': 3}]}),
    *({'type': 'mmasr.ASRResNet', 'convs': 3}, {'type': 'mmpretrain.RepVGG', 'arch': []}, {'_scope_': ''}),
    *({'plugins': 3}, {'plugins': [3]}, {'plugins': {'cfg': None}}, {'sites': 3}, {'asr': {'sites': []}}),
    *(
        {'convs': {'sites': [], 'type': 3}},
        {'init_cfg': 3},
        {'dataset': 3},
        {'datasets': [3]},
        {'imports': [3]},
    ),
]
#: torch saves it since 2.2.
FLOAT8 = [torch.float8_e4m3fn] if torch.__version__ >= (2, 2) else []
#: Keys that have a meaning, whose value may be odd.
NAMES = [
    *('type', '_scope_', 'plugins', 'asr', 'convs', 'sites', 'backbone', 'dataset', 'datasets', 'pipeline'),
    *(
        'init_cfg',
        'depth',
        'norm_cfg',
        'classes',
        'metainfo',
        'data_root',
        'ann_file',
        'sampler',
        'batch_size',
    ),
    *('default_scope', 'custom_imports', 'test_evaluator', 'test_cfg', 'test_dataloader', 'train_dataloader'),
    *('default_hooks', 'data_preprocessor', 'attention', 'delta', 'network', 'modules'),
]


def random_place(generator, data):
    """Return a random container within nested data, and a key of it."""
    while True:
        key = generator.choice(list(data) if isinstance(data, dict) else range(len(data)))
        if not isinstance(data[key], dict | list) or not data[key] or generator.random() < 0.2:
            return data, key
        data = data[key]


def fuzz_bytes(generator, content):
    """Overwrite, cut out, repeat or insert some bytes anywhere."""
    start, length = generator.randrange(len(content)), generator.choice([1, 8, 1000])
    middle = generator.choice([b'', generator.randbytes(length), content[start : start + length] * 2])
    return content[:start] + middle + content[start + length :]


def fuzz_pickle(generator, content):
    """Change bytes of the pickle, and write checksums that fit."""
    with open('in.pth', 'wb') as file:
        file.write(content)
    with zipfile.ZipFile('in.pth') as source, zipfile.ZipFile('out.pth', 'w') as target:
        for entry in source.infolist():
            data = bytearray(source.read(entry))
            if entry.filename.endswith('data.pkl'):
                for _ in range(generator.choice([1, 3, 30])):
                    data[generator.randrange(len(data))] = generator.randrange(256)
            target.writestr(entry.filename, bytes(data))
    with open('out.pth', 'rb') as file:
        return file.read()


def fuzz_weights(generator, content):
    """Rename, reshape, convert or replace a weight."""

    def change(checkpoint):
        weights = checkpoint['state_dict']
        name = generator.choice(list(weights))
        kind = generator.randrange(4)
        if kind == 0:
            weights[generator.choice(['', 'x', f'{name}.asr.psi', '\n'])] = weights.pop(name)
        elif kind == 1:
            weights[name] = copy.deepcopy(generator.choice(ODD))
        elif kind == 2:
            filled = torch.full_like(weights[name], generator.choice([0, 1]))
            weights[name] = filled.flatten()[: generator.randrange(3)]
        else:
            dtype = generator.choice([torch.complex64, torch.int8, *FLOAT8, torch.float64])
            weights[name] = weights[name].to(dtype)

    return changed(content, change)


def fuzz_meta(generator, content):
    """Put an odd value into the meta data, or next to it."""

    def change(checkpoint):
        part, key = random_place(generator, {'checkpoint': checkpoint, 'meta': checkpoint['meta']})
        key = generator.choice([key, 'epoch', 'cfg', 'dataset_meta', 'mmasr'])
        part[key] = copy.deepcopy(generator.choice(ODD))

    return changed(content, change)


def fuzz_config(generator, text):
    """Put odd values into a config."""
    config = parse_config(text)
    for _ in range(generator.choice([1, 1, 3])):
        part, key = random_place(generator, config)
        if isinstance(part, dict) and generator.random() < 0.3:
            key = generator.choice(NAMES)
        part[key] = copy.deepcopy(generator.choice(ODD))
        if isinstance(part, dict) and generator.random() < 0.1:
            part[repr(generator.choice(ODD))] = part.pop(key)
    return '\n'.join(f'{key} = {value!r}' for key, value in config.items())


def fuzz_text(generator, text):
    """Change characters of the text of a config."""
    start = generator.randrange(len(text))
    end = start + generator.choice([0, 1, 5, 100])
    return text[:start] + generator.choice(['', '(', "'", '\0', '{{', ' = ', '9' * 50]) + text[end:]


@contextlib.contextmanager
def one_line_if_refused():
    """Allow an InputError of one line inside, and no other exception."""
    try:
        with time_limit(60):
            yield
    except InputError as error:
        assert '\n' not in str(error)  # noqa: PT017, a refusal is one of two good outcomes


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fuzz', [fuzz_bytes, fuzz_pickle, fuzz_weights, fuzz_meta])
def test_a_fuzzed_file_is_read_as_data_or_refused_in_one_line(good, canary, fuzz):
    generator = random.Random(f'{fuzz.__name__} 0')
    for _ in range(60):
        content = fuzz(generator, good)
        with open('a.pth', 'wb') as file:
            file.write(content)
        with one_line_if_refused():
            opened = open_checkpoint('a.pth').content
            assert all(isinstance(tensor, torch.Tensor) for tensor in opened['state_dict'].values())
    assert not canary.exists()


@pytest.fixture(scope='module')
def good_config():
    """Return the text of a classifier's config with data, and the names of its weights."""
    backbone = {
        **TWO_STAGES,
        'plugins': [{'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv2'}],
        'convs': {'type': 'OREPA', 'sites': 'layer1.*'},
    }
    config = classifier(backbone, 16)
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'ResizeEdge', 'scale': 8}, {'type': 'PackInputs'}]
    dataset = {'type': 'CustomDataset', 'data_root': 'data', 'pipeline': pipeline}
    config.update(
        {
            'test_dataloader': {'batch_size': 1, 'num_workers': 0, 'dataset': dataset},
            'train_dataloader': {'dataset': {'type': 'RepeatDataset', 'times': 2, 'dataset': dataset}},
            'test_evaluator': {'type': 'Accuracy', 'topk': (1,)},
            'test_cfg': {},
            'metainfo': {'classes': ['a', 'b']},
            'default_hooks': {'checkpoint': {'save_best': 'auto'}},
        }
    )
    names = ('backbone.layer1.0.bn2.asr.psi', 'backbone.layer1.0.conv1.orepa.scale', 'head.fc.weight')
    return write_config(config.to_dict()), {name: torch.zeros(1) for name in names}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('calibrates', [False, True], ids=['without data', 'with data'])
@pytest.mark.parametrize('fuzz', [fuzz_config, fuzz_text])
def test_a_fuzzed_config_is_deployed_as_data_or_refused_in_one_line(good_config, canary, fuzz, calibrates):
    text, weights = good_config
    assert read_config(text, weights, calibrates=calibrates)
    generator = random.Random(f'{fuzz.__name__} 0')
    for _ in range(400):
        fuzzed = fuzz(generator, text)
        with one_line_if_refused():
            config, _ = read_config(fuzzed, weights, calibrates=calibrates)
            assert repr(parse_config(write_config(config))) == repr(config)
            write_config(deployed_config(Config(config)).to_dict())
    assert not canary.exists()


def fuzz_embedded(fuzz):
    """Return a fuzzer of checkpoints that changes the embedded config."""

    def change(generator, content):
        return changed(content, lambda c: c['meta'].update(cfg=fuzz(generator, c['meta']['cfg'])))

    return change


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'fuzz',
    [
        *(fuzz_bytes, fuzz_pickle, fuzz_weights, fuzz_meta),
        *(fuzz_embedded(fuzz_config), fuzz_embedded(fuzz_text)),
    ],
    ids=['bytes', 'pickle', 'weights', 'meta', 'config', 'text'],
)
def test_a_fuzzed_checkpoint_is_deployed_or_refused_in_one_line(request, good, canary, fuzz):
    generator = random.Random(request.node.callspec.id)
    for _ in range(8):
        content = fuzz(generator, good)
        for left in ('changed.pth', 'in.pth', 'out.pth', 'a_deploy.pth', 'a_deploy.py'):
            with contextlib.suppress(FileNotFoundError):
                os.remove(left)
        outcome = deploy(content)
        if not isinstance(outcome, str):
            use(outcome)
        assert not canary.exists()
