"""The text of a config: it reads back as it was written, also by mmengine, and no code in it runs."""

import math
import random

import pytest
from mmengine.config import Config

from mmasr.errors import InputError
from mmasr.untrusted.config_text import parse_config, write_config

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


def test_text_that_mmengine_writes_is_parsed(config):
    assert parse_config(config.pretty_text) == config.to_dict()


def test_written_text_is_parsed(config):
    assert parse_config(write_config(config.to_dict())) == config.to_dict()


def random_data(generator, depth=0):
    """Return data with characters that could break out of the text, such as quotes and backslashes."""
    kind = generator.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return generator.choice([None, True, False])
    if kind == 1:
        return generator.randrange(-(10**6), 10**20)
    if kind == 2:
        return generator.choice(
            [generator.random() * 10.0 ** generator.randrange(-20, 20), math.inf, -math.inf, -0.0]
        )
    if kind in (3, 4, 5):
        return ''.join(
            generator.choice('ab\'"\\{{}}$\n\r\t\x00\x1b é中#%') for _ in range(generator.randrange(12))
        )
    items = [random_data(generator, depth + 1) for _ in range(generator.randrange(4))]
    if kind == 6:
        return items
    if kind == 7:
        return tuple(items)
    return dict(zip(("x': 1, 'y", 'a', 'lambda', '{{ fileDirname }}'), items, strict=False))


def test_random_data_reads_back_unchanged_here_and_in_mmengine(tmp_path):
    generator = random.Random(0)
    for _ in range(50):
        config = {f'name{i}': random_data(generator) for i in range(5)}
        text = write_config(config)
        assert repr(parse_config(text)) == repr(config)  # repr tells 1 from True, and [] from ()
        (tmp_path / 'config.py').write_text(text, encoding='utf-8')
        assert Config.fromfile(tmp_path / 'config.py').to_dict() == config


@pytest.mark.parametrize(
    'value', [{1}, b'x', 1j, len, object()], ids=['a set', 'bytes', 'complex', 'a function', 'an object']
)
def test_only_plain_data_is_written(value):
    with pytest.raises(InputError, match='not plain data'):
        write_config({'a': [value]})


def test_a_name_that_is_not_an_identifier_is_not_written():
    with pytest.raises(InputError, match=r"the name 'x = 1\\ny', which is not a name in Python"):
        write_config({'x = 1\ny': 2})


#: Python refuses to convert an integer of more than 4300 digits to text, which is not an InputError.
HUGE = '0x1' + '0' * 5000


def test_a_huge_integer_is_not_written():
    with pytest.raises(InputError, match='integer of more than 1,024 bits'):
        write_config({'a': [int(HUGE, 16)]})


@pytest.mark.parametrize('text', [f'a = {HUGE}', f'a = -{HUGE}', f"a = dict(b=[('x', {HUGE})])"])
def test_a_huge_integer_is_refused(text):
    with pytest.raises(InputError, match=r'integer of more than 1,024 bits \(line 1\)'):
        parse_config(text)


def test_literals_are_parsed():
    text = """
a = dict(
    b=-1.5, c=[True, None, (1, 'x')], d={'k 1': 2}, e={1, 2}, f=inf, g=dict({'x y': 1}), h=float('-inf')
)
"""
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
    'a syntax error': 'a = not data',
    'a null byte': "a = '\0'",
    'many brackets': 'a = ' + '(' * 5000,
    'many signs': 'a = ' + '-' * 100000 + '1',
    'a huge number': 'a = ' + '9' * 10000,
    'a huge text': '#' * 3_000_000,
}


@pytest.mark.parametrize('text', ODD.values(), ids=ODD)
def test_odd_text_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_config(text)
    assert '\n' not in str(caught.value)
