"""The text of a config: what is written is read back as the same, by mmengine too, and nothing in it runs."""

import math
import random

import pytest
from mmengine.config import Config

from mmasr.deploy.config_text import parse_config, write_config
from mmasr.errors import InputError

NAMES = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
]


@pytest.fixture(scope='module', params=NAMES)
def config(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'config.py'
    path.write_text(f'_base_ = {request.param!r}')
    return Config.fromfile(path)


def test_reads_what_mmengine_writes(config):
    assert parse_config(config.pretty_text) == config.to_dict()


def test_reads_what_it_writes(config):
    assert parse_config(write_config(config.to_dict())) == config.to_dict()


def any_data(generator, depth=0):
    """Data with everything that could break out of the text: quotes, backslashes, braces, control characters."""
    kind = generator.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return generator.choice([None, True, False])
    if kind == 1:
        return generator.randrange(-(10**6), 10**20)
    if kind == 2:
        return generator.choice([generator.random() * 10.0 ** generator.randrange(-20, 20), math.inf, -math.inf, -0.0])
    if kind in (3, 4, 5):
        return ''.join(generator.choice('ab\'"\\{{}}$\n\r\t\x00\x1b é中#%') for _ in range(generator.randrange(12)))
    items = [any_data(generator, depth + 1) for _ in range(generator.randrange(4))]
    if kind == 6:
        return items
    if kind == 7:
        return tuple(items)
    return dict(zip(("x': 1, 'y", 'a', 'lambda', '{{ fileDirname }}'), items, strict=False))


def test_any_data_survive_in_the_text_and_in_mmengine(tmp_path):
    generator = random.Random(0)
    for _ in range(50):
        config = {f'name{i}': any_data(generator) for i in range(5)}
        text = write_config(config)
        assert repr(parse_config(text)) == repr(config)  # which tells 1 from True, and [] from ()
        (tmp_path / 'config.py').write_text(text, encoding='utf-8')
        assert Config.fromfile(tmp_path / 'config.py').to_dict() == config


@pytest.mark.parametrize('value', [{1}, b'x', 1j, len, object()], ids=['a set', 'bytes', 'complex', 'a function', 'an object'])
def test_what_is_no_data_is_not_written(value):
    with pytest.raises(InputError, match='no plain data'):
        write_config({'a': [value]})


def test_literals():
    text = "a = dict(b=-1.5, c=[True, None, (1, 'x')], d={'k 1': 2}, e={1, 2}, f=inf, g=dict({'x y': 1}), h=float('-inf'))"
    assert parse_config(text) == {
        'a': {
            **{'b': -1.5, 'c': [True, None, (1, 'x')], 'd': {'k 1': 2}, 'e': {1, 2}, 'f': math.inf},
            **{'g': {'x y': 1}, 'h': -math.inf},
        }
    }


CODE = {
    'an import': "import os\nos.mknod('{proof}')",
    'a method': "a = __import__('os').mknod('{proof}')",
    'a comprehension': "a = [open('{proof}', 'w') for _ in (1,)]",
    'an f-string': 'a = f\'{{open("{proof}", "w")}}\'',
    'unpacking': "a = dict(**{{'b': open('{proof}', 'w')}})",
    'a call in a dict': "a = dict(b=open('{proof}', 'w'))",
    'an attribute': "a = dict\na.b = open('{proof}', 'w')",
    'a class': "class A:\n    open('{proof}', 'w')",
    'a lambda': "a = (lambda: open('{proof}', 'w'))()",
    'a condition': "if open('{proof}', 'w'): pass",
    'a bare call': "dict(open('{proof}', 'w'))",
    'another float': "a = float(open('{proof}', 'w'))",
}


@pytest.mark.parametrize('text', CODE.values(), ids=CODE)
def test_code_is_refused_and_does_not_run(tmp_path, text):
    proof = tmp_path / 'proof'
    with pytest.raises(InputError, match='not executed'):
        parse_config(text.format(proof=proof))
    assert not proof.exists()


ODD = {
    'a large power': 'a = 9 ** 9 ** 9',
    'a name': 'a = not data',
    'a null byte': "a = '\0'",
    'many brackets': 'a = ' + '(' * 5000,
    'many signs': 'a = ' + '-' * 100000 + '1',
    'a huge number': 'a = ' + '9' * 10000,
    'a huge text': '#' * 3_000_000,
}


@pytest.mark.parametrize('text', ODD.values(), ids=ODD)
def test_odd_text_is_refused_in_a_line(text):
    with pytest.raises(InputError) as caught:
        parse_config(text)
    assert '\n' not in str(caught.value)
