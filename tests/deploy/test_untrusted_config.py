"""The config of a checkpoint is data: it is read like mmengine reads it, and nothing in it runs."""

import sys

import pytest
from mmengine.config import Config

from mmasr.deploy.untrusted_config import check_config, import_modules, parse_config
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


def test_accepts_what_openmmlab_ships(config):
    parsed = config.to_dict()
    parsed['model']['backbone'].pop('init_cfg', None)
    import_modules(parsed, trust=False)
    check_config(parsed)


def test_literals():
    text = "a = dict(b=-1.5, c=[True, None, (1, 'x')], d={'k 1': 2}, e={1, 2}, f=inf, g=dict({'x y': 1}))"
    assert parse_config(text) == {
        'a': {'b': -1.5, 'c': [True, None, (1, 'x')], 'd': {'k 1': 2}, 'e': {1, 2}, 'f': float('inf'), 'g': {'x y': 1}}
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
    'a large power': 'a = 9 ** 9 ** 9',
    'a name': 'a = not data',
    'a null byte': "a = '\0'",
    'many brackets': 'a = ' + '(' * 5000,
    'many signs': 'a = ' + '-' * 100000 + '1',
}


@pytest.mark.parametrize('text', CODE.values(), ids=CODE)
def test_code_is_refused_and_does_not_run(tmp_path, text):
    proof = tmp_path / 'proof'
    with pytest.raises(InputError, match='`config`') as caught:
        parse_config(text.format(proof=proof) if 'proof' in text else text)
    assert '\n' not in str(caught.value)
    assert not proof.exists()


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """The file that importing the module a_stranger creates."""
    proof = tmp_path / 'proof'
    (tmp_path / 'a_stranger.py').write_text(f'open({str(proof)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    yield proof
    sys.modules.pop('a_stranger', None)


def import_from_config(imports, trust):
    import_modules({'custom_imports': {'imports': imports}}, trust=trust)


def test_modules_of_openmmlab_and_our_own_are_imported():
    import_from_config(['mmasr', 'mmdet.models'], trust=False)


@pytest.mark.parametrize('imports', [['mmasr', 'a_stranger'], 'a_stranger', ['mmasr_evil'], [' a_stranger']], ids=repr)
def test_other_modules_are_not_imported(proof, imports):
    with pytest.raises(InputError, match=r'imports .*`config`, or pass `trust_imports`'):
        import_from_config(imports, trust=False)
    assert not proof.exists()


def test_trust_imports_them(proof):
    import_from_config(['a_stranger'], trust=True)
    assert proof.exists()


def test_a_module_that_is_not_there_is_said():
    with pytest.raises(InputError, match="can't be imported"):
        import_from_config(['mmdet.no_such_module'], trust=False)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({'type': 'os.system', 'command': 'true'}, "builds 'os.system'"),
        ({'type': 'os.mknod', 'path': 'x'}, "builds 'os.mknod'"),
        ({'type': 'mmengine.dump', 'obj': 1, 'file': 'x.json'}, "builds 'mmengine.dump'"),
        ({'type': 'mmengine.fileio.io.os.system', 'command': 'true'}, "builds 'mmengine.fileio.io.os.system'"),
        ({'type': 'ResNet', 'x': [{'y': {'type': 'subprocess.run'}}]}, "builds 'subprocess.run'"),
        ({'type': 'ResNet', 'nms': {'type': '__import__("os").getcwd'}}, 'has code in it'),
        ({'type': 'ResNet', 'nms': {'type': 'torch.save'}}, "builds 'torch.save'"),
        ({'type': 'mmengine.runner.runner.Runner', 'work_dir': 'x'}, "builds 'mmengine.runner.runner.Runner'"),
        ({'type': 'mmpretrain.datasets.cifar.CIFAR10', 'download': True}, "builds 'mmpretrain.datasets.cifar.CIFAR10'"),
        (
            {'type': 'ResNet', 'warp_mode': '[[C["x"] for C.__class_getitem__ in [cv2.os.system]] for C in [D]]'},
            'has code in it',
        ),
        ({'type': 'ResNet', 'warp_mode': 'cv2.MOTION_EUCLIDEAN'}, 'has code in it'),
        ({'type': 'mmpretrain.TIMMBackbone', 'model_name': 'hf_hub:a/b'}, "load 'hf_hub:a/b'"),
        ({'type': 'ResNet', 'sites': '((.|.)*)*!'}, 'may never end'),
        ({'type': 'ResNet', 'sites': '.*' * 9 + '!'}, 'may never end'),
        ({'type': 'ResNet', 'warp_mode': '__import__("os").getcwd()'}, 'has code in it'),
        ({'type': 'ResNet', '_scope_': 'antigravity'}, "scope 'antigravity'"),
        ({'type': 'ResNet', 'teacher_ckpt': 'https://example.com/x'}, "load 'https://example.com/x'"),
        ({'type': 'ResNet', 'teacher_config': 'evil.py'}, "load 'evil.py'"),
    ],
)
def test_a_model_that_would_run_something_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        check_config({'default_scope': 'mmdet', 'model': model})


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("_base_ = 'evil.py'", 'sets _base_'),
        ("text = 'x'", 'sets text'),
        ("x = ['{{$A:1', '}} open(1)']", 'would be substituted'),
        ("x = dict(pipeline=[dict(type='os.system', command='true')])", "builds 'os.system'"),
        ("optim_wrapper = dict(constructor='os.system')", "builds 'os.system'"),
        ("runner_type = 'os.system'", "builds 'os.system'"),
    ],
)
def test_the_rest_of_the_config_runs_nothing_when_it_is_deployed(line, message):
    with pytest.raises(InputError, match=message):
        check_config(parse_config(f"model = dict(type='mmdet.ResNet')\n{line}"))


def test_full_paths_of_registered_classes_are_known():
    check_config({'model': {'type': 'mmdet.models.backbones.resnet.ResNet', 'roi_layer': {'type': 'RoIAlign'}}})


def test_an_unknown_default_scope_is_refused():
    with pytest.raises(InputError, match="scope 'antigravity'"):
        check_config({'default_scope': 'antigravity', 'model': {'type': 'ResNet'}})
