"""Attacks on whoever deploys a checkpoint, and on whoever loads what was deployed: one row a class of attack, and a fuzzer."""

import contextlib
import copy
import importlib
import os
import pickle
import random
import signal
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import Call, Touch, classifier, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmasr.deploy.config_text import parse_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

#: Files of each kind and seed that the fuzzer tries: a minute of one core in all.
ROUNDS = 60
#: Two stages, since every file is read, changed and written with all its tensors.
BACKBONE = {
    'type': 'mmasr.ASRResNet',
    'depth': 18,
    'base_channels': 8,
    'num_stages': 2,
    'strides': (1, 2),
    'dilations': (1, 1),
    'out_indices': (1,),
    'asr': {'attention': {'type': 'SE'}},
}


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A small classifier's checkpoint, in bytes."""
    path = tmp_path_factory.mktemp('good') / 'good.pth'
    save_network(path, classifier(BACKBONE, 16))
    return path.read_bytes()


@pytest.fixture
def ground(tmp_path, monkeypatch):
    """The folder that the attacks are made from: everything in it that is loaded or imported leaves a file, the canary."""
    canary = tmp_path / 'canary'
    code = f'open({str(canary)!r}, "w")'
    (tmp_path / 'ground').mkdir()
    monkeypatch.chdir(tmp_path / 'ground')
    monkeypatch.syspath_prepend(tmp_path / 'ground')
    for name in ('a_stranger.py', 'a_config.py'):
        with open(name, 'w') as file:
            file.write(code)
    os.mkdir('a_scope')
    with open('a_scope/__init__.py', 'w') as file:
        file.write(code)
    for name in ('weights', 'weights.pth', 'weights.json'):
        with open(name, 'wb') as file:
            pickle.dump(Touch(canary), file)
    yield canary
    for name in ('a_stranger', 'a_config', 'a_scope'):
        sys.modules.pop(name, None)


@contextlib.contextmanager
def seconds(count):
    """Interrupt what takes longer."""

    def interrupt(*_):
        raise TimeoutError(f'longer than {count} s')

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(count)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def deploy(content):
    """Deploy a checkpoint of this content: a report, or the line that says why not, with nothing written and nothing lost."""
    with open('a.pth', 'wb') as file:
        file.write(content)
    before = sorted(os.listdir())
    try:
        with seconds(60):
            return reparameterize('a.pth', force=True)
    except InputError as error:
        refused = str(error)
    finally:
        with open('a.pth', 'rb') as file:
            assert file.read() == content
    assert '\n' not in refused
    assert sorted(os.listdir()) == before
    return refused


def use(report):
    """What stock OpenMMLab does with what was deployed."""
    config = Config.fromfile(report.config)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        MODELS.build(config.model).init_weights()


def changed(good, change):
    with open('changed.pth', 'wb') as file:
        file.write(good)
    checkpoint = torch.load('changed.pth', weights_only=False)
    change(checkpoint)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for what is nested
    try:
        torch.save(checkpoint, 'changed.pth')
    except (KeyError, RuntimeError) as error:  # nested tensors and float8
        if torch.__version__ >= (2, 2):
            raise
        pytest.skip(f'torch {torch.__version__} does not save it: {error}')
    finally:
        sys.setrecursionlimit(limit)
    with open('changed.pth', 'rb') as file:
        return file.read()


def config(**parts):
    """Set these in the config, where a key is a path."""

    def change(checkpoint):
        config = Config(parse_config(checkpoint['meta']['cfg']))
        config.merge_from_dict({key.replace('__', '.'): value for key, value in parts.items()})
        checkpoint['meta']['cfg'] = '\n'.join(f'{key} = {value!r}' for key, value in config.to_dict().items())

    return change


def line(text):
    """Add this line to the config."""
    return lambda checkpoint: checkpoint['meta'].update(cfg=f'{checkpoint["meta"]["cfg"]}\n{text}')


def weights(name, value):
    return lambda checkpoint: checkpoint['state_dict'].update({name: value})


def expensive():
    """A list of a few bytes that holds more than there are atoms."""
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
    """Add test data."""
    dataset = {'type': 'mmdet.CocoDataset', 'ann_file': 'a.json', 'data_root': 'data', **dataset}
    return line(f'test_dataloader = { ({"batch_size": 1, "num_workers": 0, "dataset": dataset})!r}')


def dcn(**options):
    """A ResNet with deformable convolutions."""
    inner = {'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 16, 'out_indices': (3,)}
    return {**NEW, **inner, 'dcn': {'type': 'DCNv2', **options}, 'stage_with_dcn': (False, True, True, True)}


def many_sites(checkpoint):
    """The names of all weights, at many places of the config."""
    config(model__backbone__x=[{'b': {'sites': 0}}] * 2000)(checkpoint)
    checkpoint['state_dict'].update({f'b.l{i}.asr.p': torch.zeros(1) for i in range(2000)})


def attributes(checkpoint):
    """A state dict whose attributes are not what torch expects."""
    checkpoint['state_dict']._metadata = 3


CODE = "__import__('os').mknod('../canary')"
BREAK_OUT = f"x': {CODE}, 'y"
#: What a stranger may try. Each leaves the canary where it works, or takes too long.
ATTACKS = {
    # what mmengine, mmcv, mmdet and mmpretrain do with strings
    'a type is imported': config(model__backbone__type='a_stranger'),
    'a type of another registry is imported': config(model__head__type='a_stranger.LinearClsHead'),
    'a scope is imported': config(model__head__loss___scope_='a_scope'),
    'the default scope is imported': config(default_scope='a_scope'),
    'a module is imported': config(custom_imports={'imports': ['a_stranger']}),
    'a padding is imported': config(
        model__neck={
            'type': 'mmdet.FPN',
            'in_channels': [16],
            'out_channels': 8,
            'num_outs': 1,
            'conv_cfg': {'type': 'a_stranger'},
        }
    ),
    'a function is called': config(model__head__loss={'type': 'os.mknod', 'path': '../canary'}),
    'an NMS is evaluated': config(model__test_cfg={'nms': {'type': CODE}}),
    'a tracker is evaluated': config(model__neck={'type': 'mmdet.CameraMotionCompensation', 'warp_mode': CODE}),
    'a pretrained file is unpickled': config(model__backbone__init_cfg={'type': 'Pretrained', 'checkpoint': 'weights.pth'}),
    'a file without a suffix is unpickled': config(model__backbone__init_cfg={'type': 'Pretrained', 'checkpoint': 'weights'}),
    'an override is unpickled': config(
        model__backbone__init_cfg={
            **{'type': 'Constant', 'val': 1, 'layer': 'Conv2d'},
            'override': {'type': 'Pretrained', 'name': 'conv1', 'checkpoint': 'weights'},
        }
    ),
    'swin unpickles': config(
        model__backbone={**NEW, 'type': 'mmdet.SwinTransformer', 'init_cfg': {'type': 'Constant', 'checkpoint': 'weights'}}
    ),
    'timm unpickles': config(
        model__backbone={**NEW, 'type': 'TIMMBackbone', 'model_name': 'resnet18', 'checkpoint_path': 'weights'}
    ),
    'timm unpickles what is said around its own arguments': config(
        model__backbone={
            **{**NEW, 'type': 'mmasr.WithoutAttention', 'modules': [], 'checkpoint_path': 'weights'},
            'network': {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'resnet18'},
        }
    ),
    'a teacher is loaded': config(model={'type': 'mmdet.LAD', 'teacher_backbone': {}, 'teacher_ckpt': 'weights'}),
    'a teacher is a config': config(
        model={'type': 'mmdet.KnowledgeDistillationSingleStageDetector', 'teacher_config': 'a_config.py'}
    ),
    'a prototype is unpickled': config(model={'type': 'ImageToImageRetriever', 'image_encoder': {}, 'prototype': 'weights'}),
    # what the deployed config does when it is loaded
    'a base is executed': line("_base_ = 'a_config.py'"),
    'a text is substituted': line("metainfo = dict(classes=['{{ fileDirname }}'])"),
    'a key breaks out of its quotes': line(f'test_cfg = {{{BREAK_OUT!r}: 1}}'),
    'a key of the model breaks out': config(model__head__loss={'type': 'CrossEntropyLoss', BREAK_OUT: 1}),
    'the name of a class breaks out': line(f'metainfo = dict(classes=[{BREAK_OUT!r}])'),
    'a set hides a string': line("test_cfg = dict(x={'{{ fileDirname }}'})"),
    'bytes hide a string': line("test_cfg = dict(x=b'{{ fileDirname }}')"),
    # what is run with the deployed config
    'a hook is deployed': line('custom_hooks = [dict(type="os.system", command="touch ../canary")]'),
    'an evaluator writes': line("test_evaluator = dict(type='DumpResults', out_file_path='../canary')"),
    'names of classes are a file': line("metainfo = dict(classes='weights')"),
    'names of classes of a data set are a file': data(classes='weights'),
    'a device in two parts': data(data_root='/', ann_file='dev/zero'),
    'a key of the classes breaks out': line(f'metainfo = {{{BREAK_OUT!r}: 1}}'),
    # what takes too long, or too much
    'an endless expression': config(model__backbone__asr__sites='((.|.)*)*!'),
    'an endless expression without a quantifier': config(model__backbone__asr__sites='x?' * 30 + 'x' * 30),
    'many attention modules': config(model__backbone__asr__delta=10**5),
    'many stages': config(model__backbone__num_stages=10**9),
    'a wide network': config(model__backbone__base_channels=20_000),
    'a deep network': config(model__backbone={**NEW, 'type': 'mmdet.CSPDarknet', 'deepen_factor': 1e6}),
    'native code divides by zero': config(model__backbone=dcn(deform_groups=64)),
    'native code reads beyond its input': config(model__backbone=dcn(deform_groups=3)),
    'a step of nothing': config(model__backbone={**dcn(), 'strides': (1, 0, 2, 2)}),
    'many sites in many places': many_sites,
    'much padding': config(model__data_preprocessor={'type': 'mmdet.DetDataPreprocessor', 'pad_size_divisor': 30_000}),
    'a long list': config(model__backbone__x=[0] * 10**6),
    'a list of lists of lists': lambda checkpoint: checkpoint['meta'].update(dataset_meta={'classes': expensive()}),
    'a deep list': lambda checkpoint: checkpoint['meta'].update(dataset_meta={'classes': nested()}),
    'much out of nothing': weights('x', torch.zeros(1).expand(2**45)),
    'a sparse tensor': weights('x', torch.sparse_coo_tensor([[0]], [1.0], (5,))),
    'a nested tensor': weights('x', torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
    'a quantized tensor': weights('x', torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)),
    'a tensor without numbers': weights('x', torch.zeros(2, device='meta')),
    'bytes out of nothing': weights('x', Call(bytearray, 2**45)),
    'an array out of nothing': weights('x', Call(np.ndarray, (2**45,))),
    'an array of pointers': lambda checkpoint: checkpoint['meta'].update(seed=Call(np.dtype, 'O')),
    'a number of many digits': line(f'metainfo = dict(classes=[{"0x1" + "0" * 5000}])'),
    'plugins that are none': config(model__head__loss={'type': 'CrossEntropyLoss', 'class_weight': {'plugins': [1]}}),
    'attributes of the weights': attributes,
    'control characters': weights('\x1b]0;x\x07', torch.zeros(1)),
    'a pickle': weights('x', Touch('../canary')),
}


def test_the_ground_is_mined(ground):
    for trap in (lambda: importlib.import_module('a_stranger'), lambda: importlib.import_module('a_scope')):
        trap()
        ground.unlink()
    with open('weights', 'rb') as file:
        pickle.load(file)
    assert ground.exists()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ATTACKS)
def test_an_attack(good, ground, name):
    outcome = deploy(changed(good, ATTACKS[name]))
    assert not ground.exists()
    if not isinstance(outcome, str):
        use(outcome)
        assert not ground.exists()


#: What does not belong where it is put.
ODD = [
    *(
        None,
        True,
        -1,
        0,
        3,
        2**70,
        1e300,
        float('inf'),
        float('nan'),
        1j,
        '',
        'x',
        'a.b',
        '../x',
        '{{ x }}',
        '\x1b[0m',
        "'",
        'os',
    ),
    *([], [[]], {}, {'type': 'ResNet'}, {'type': 'os.system'}, {'x y': 1}, (), b'x', {1}, torch.zeros(2), np.ones(2), len),
]


def any_place(generator, data):
    """Some container within nested data, and a key of it."""
    while True:
        key = generator.choice(list(data) if isinstance(data, dict) else range(len(data)))
        if not isinstance(data[key], dict | list) or not data[key] or generator.random() < 0.2:
            return data, key
        data = data[key]


def of_bytes(generator, content):
    """Overwrite, cut out, repeat or insert some bytes anywhere."""
    start, length = generator.randrange(len(content)), generator.choice([1, 8, 1000])
    middle = generator.choice([b'', generator.randbytes(length), content[start : start + length] * 2])
    return content[:start] + middle + content[start + length :]


def of_the_pickle(generator, content):
    """Change bytes of the pickle, with the checksums made right again."""
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


def of_the_weights(generator, content):
    """Rename, drop, reshape or replace a weight."""

    def change(checkpoint):
        weights = checkpoint['state_dict']
        name = generator.choice(list(weights))
        kind = generator.randrange(4)
        if kind == 0:
            weights[generator.choice(['', 'x', f'{name}.asr.psi', '\n'])] = weights.pop(name)
        elif kind == 1:
            weights[name] = copy.deepcopy(generator.choice(ODD))
        elif kind == 2:
            weights[name] = torch.full_like(weights[name], generator.choice([0, 1])).flatten()[: generator.randrange(3)]
        else:
            weights[name] = weights[name].to(
                generator.choice([torch.complex64, torch.int8, torch.float8_e4m3fn, torch.float64])
            )

    return changed(content, change)


def of_the_meta(generator, content):
    """Put something else into what the checkpoint says of itself, or beside it."""

    def change(checkpoint):
        part, key = any_place(generator, {'checkpoint': checkpoint, 'meta': checkpoint['meta']})
        key = generator.choice([key, 'epoch', 'cfg', 'dataset_meta', 'mmasr'])
        part[key] = copy.deepcopy(generator.choice(ODD))

    return changed(content, change)


def of_the_config(generator, content):
    """Put something else anywhere into the config."""

    def change(checkpoint):
        config = parse_config(checkpoint['meta']['cfg'])
        for _ in range(generator.choice([1, 1, 3])):
            part, key = any_place(generator, config)
            part[key] = copy.deepcopy(generator.choice(ODD))
            if isinstance(part, dict) and generator.random() < 0.2:
                part[repr(generator.choice(ODD))] = part.pop(key)
        checkpoint['meta']['cfg'] = '\n'.join(f'{key} = {value!r}' for key, value in config.items())

    return changed(content, change)


def of_the_text(generator, content):
    """Change characters of the config."""

    def change(checkpoint):
        text = checkpoint['meta']['cfg']
        start = generator.randrange(len(text))
        end = start + generator.choice([0, 1, 5, 100])
        checkpoint['meta']['cfg'] = text[:start] + generator.choice(['', '(', "'", '\0', '{{', ' = ', '9' * 50]) + text[end:]

    return changed(content, change)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('level', [of_bytes, of_the_pickle, of_the_weights, of_the_meta, of_the_config, of_the_text])
def test_whatever_is_in_a_file_it_is_deployed_or_refused_in_a_line(good, ground, level, seed):
    generator = random.Random(f'{level.__name__} {seed}')
    for _ in range(ROUNDS):
        content = level(generator, good)
        for left in ('changed.pth', 'in.pth', 'out.pth', 'a_deploy.pth', 'a_deploy.py'):
            with contextlib.suppress(FileNotFoundError):
                os.remove(left)
        outcome = deploy(content)
        if not isinstance(outcome, str):
            use(outcome)
        assert not ground.exists()
