"""The config of a checkpoint is data from a stranger: reduced, and held against what is allowed."""

import sys

import pytest
import torch
from mmengine.config import Config

from mmasr.deploy.config_text import write_config
from mmasr.deploy.untrusted_config import read_config
from mmasr.errors import InputError

WEIGHTS = {
    'backbone.conv1.weight': torch.zeros(64, 3, 7, 7),
    'backbone.layer1.0.bn2.asr.psi': torch.zeros(1, 64),
    'backbone.layer1.0.bn2.asr.initial': torch.zeros(64),
    'backbone.layer1.0.conv2.square.1.weight': torch.zeros(64),
}
RESNET = {'type': 'mmdet.ResNet', 'depth': 50}


def read(config, **options):
    return read_config(write_config({'default_scope': 'mmdet', **config}), WEIGHTS, **options)


def model(**arguments):
    """The config of a detector whose backbone has these arguments."""
    return {'model': {'type': 'FasterRCNN', 'backbone': {**RESNET, **arguments}}}


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
        'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py',
    ],
)
def test_what_openmmlab_ships_is_reduced_to_model_and_test_data(tmp_path, name):
    (tmp_path / 'config.py').write_text(f'_base_ = {name!r}')
    config = Config.fromfile(tmp_path / 'config.py')
    read, left_out = read_config(config.pretty_text, WEIGHTS)
    assert set(read) <= {'default_scope', 'model', 'data_preprocessor', 'test_dataloader', 'test_evaluator', 'test_cfg'} | {
        'test_pipeline'
    }
    assert {'model', 'test_dataloader', 'test_evaluator'} <= set(read)
    assert set(config) == set(read) | set(left_out)
    assert 'init_cfg' not in read['model']['backbone']


def test_what_is_left_out_is_said():
    _, left_out = read({**model(), 'custom_hooks': [{'type': 'os.system', 'command': 'true'}], 'load_from': 'http://x'})
    assert left_out == dict.fromkeys(('custom_hooks', 'load_from'), 'deploying does not need it')


def test_sites_are_read_from_the_weights():
    asr = {'attention': {'type': 'SE'}, 'sites': '((.|.)*)*!'}
    config, _ = read(model(type='mmasr.ASRResNet', asr=asr, convs={'type': 'ACNet', 'sites': '(x+x+)+y'}))
    assert config['model']['backbone']['asr']['sites'] == ['layer1.0.bn2']
    assert config['model']['backbone']['convs']['sites'] == ['layer1.0.conv2']


def test_sites_of_a_wrapped_backbone_are_read_from_the_weights():
    wrapped = {'type': 'mmasr.ASRBackbone', 'backbone': RESNET, 'asr': {'attention': {'type': 'SE'}}, 'sites': '(a*)*b'}
    config, _ = read({'model': {'type': 'FasterRCNN', 'backbone': wrapped}})
    assert config['model']['backbone']['sites'] == ['layer1.0.bn2']


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """The file that importing the module a_stranger creates."""
    proof = tmp_path / 'proof'
    (tmp_path / 'a_stranger.py').write_text(f'open({str(proof)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    yield proof
    sys.modules.pop('a_stranger', None)


@pytest.mark.parametrize('imports', [['mmasr', 'a_stranger'], 'a_stranger', ['mmasr_evil'], [' a_stranger'], ['mmdet.apis']])
def test_other_modules_than_those_of_models_are_not_imported(proof, imports):
    with pytest.raises(InputError, match=r'imports .*pass `trust_imports`'):
        read({**model(), 'custom_imports': {'imports': imports}})
    assert not proof.exists()


def test_trust_imports_them(proof):
    config, _ = read({**model(), 'custom_imports': {'imports': 'a_stranger'}}, trust_imports=True)
    assert proof.exists()
    assert config['custom_imports']['imports'] == ['a_stranger']


def test_a_module_that_is_not_there_is_said():
    with pytest.raises(InputError, match="can't be imported"):
        read({**model(), 'custom_imports': {'imports': ['mmdet.models.backbones.no_such_module']}})


@pytest.mark.parametrize('name', ['mmdet.models.backbones.resnet.ResNet', 'mmdet.ResNet', 'ResNet', 'mmpretrain.ResNet'])
def test_every_way_to_name_a_class_is_known(name):
    read(model(type=name, norm_cfg={'type': 'SyncBN'}, roi_layer={'type': 'RoIAlign'}))


#: A model that would do more than compute, and what is said.
MODELS = {
    'a function': ({'type': 'os.system', 'command': 'true'}, r"builds 'os\.system'"),
    'a module': ({'type': 'a_stranger'}, "builds 'a_stranger'"),
    'a function of mmengine': ({'type': 'mmengine.dump', 'obj': 1, 'file': 'x'}, r"builds 'mmengine\.dump'"),
    'a function through a module': ({'type': 'mmengine.fileio.io.os.system'}, 'which no registry has'),
    'a runner': ({'type': 'mmengine.runner.runner.Runner', 'work_dir': 'x'}, 'which no registry has'),
    'a data set': ({'type': 'mmpretrain.datasets.cifar.CIFAR10', 'download': True}, 'which no registry has'),
    'deep down': ({**RESNET, 'x': [{'y': {'type': 'subprocess.run'}}]}, r"backbone\.x\[0\]\.y builds 'subprocess\.run'"),
    'a scope': ({**RESNET, '_scope_': 'a_stranger'}, "scope 'a_stranger'"),
    'a scope of another package': ({**RESNET, 'x': {'type': 'ReLU', '_scope_': 'antigravity'}}, "scope 'antigravity'"),
    'code for an NMS': ({**RESNET, 'nms': {'type': '__import__("os").getcwd'}}, 'which no registry has'),
    'code for a tracker': ({'type': 'CameraMotionCompensation', 'warp_mode': 'exit'}, 'evaluates a string as Python'),
    'a teacher': ({'type': 'LAD', 'teacher_ckpt': 'weights'}, 'loads a teacher'),
    'a language model': ({'type': 'mmdet.BertModel', 'name': 'bert'}, 'not known'),
    'a repository': ({'type': 'mmpretrain.HuggingFaceClassifier', 'model_name': 'x'}, 'downloads'),
    'answers': ({'type': 'mmpretrain.VQAGenerationHead', 'answer_list_path': 'weights'}, 'loads answers'),
    'weights of timm': ({'type': 'mmpretrain.TIMMBackbone', 'model_name': 'x', 'checkpoint_path': 'weights'}, 'may not be set'),
    'a repository of timm': ({'type': 'mmpretrain.TIMMBackbone', 'model_name': 'hf_hub:a/b'}, 'no plain word'),
    'a file': ({**RESNET, 'x': 'weights.pth'}, 'no plain word'),
    'a path': ({**RESNET, 'x': '/etc/passwd'}, 'no plain word'),
    'an address': ({**RESNET, 'x': 'https://example.com'}, 'no plain word'),
    'brackets': ({**RESNET, 'x': 'f(1)'}, 'no plain word'),
    'a substitution': ({**RESNET, 'x': '{{ fileDirname }}'}, 'no plain word'),
    'control characters': ({**RESNET, 'x': '\x1b[31m'}, 'no plain word'),
    'a key that breaks out': ({**RESNET, "x': open('proof', 'w'), 'y": 1}, 'has the key'),
    'a key of mmengine': ({**RESNET, '_delete_': True}, "has the key '_delete_'"),
    'a number as a key': ({**RESNET, 'x': {1: 2}}, 'has the key 1'),
    'a large number': ({**RESNET, 'base_channels': 10**6}, 'not plausible'),
    'no number': ({**RESNET, 'x': float('nan')}, 'no number'),
    'many entries': ({**RESNET, 'x': [0] * 10**5}, 'more than 100,000 entries'),
}


@pytest.mark.parametrize('name', MODELS)
def test_a_model_that_is_not_allowed_is_refused(name):
    backbone, message = MODELS[name]
    with pytest.raises(InputError, match=message):
        read({'model': {'type': 'FasterRCNN', 'backbone': backbone}})


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("model = dict(type='FasterRCNN', x=b'{{ a }}')", 'no plain data'),
        ("model = dict(type='FasterRCNN', x={'a'})", 'no plain data'),
        ("model = dict(type='FasterRCNN', x={('a', 1): 2})", 'has the key'),
        ('model = 3', 'no model'),
        ("default_scope = 'antigravity'", "scope 'antigravity'"),
    ],
    ids=['bytes', 'a set', 'a tuple as a key', 'a number', 'a scope'],
)
def test_what_is_no_plain_data_is_refused(line, message):
    with pytest.raises(InputError, match=message):
        read_config(f"default_scope = 'mmdet'\n{write_config(model())}{line}", WEIGHTS)


def data(**arguments):
    """The config of a test set with these arguments."""
    dataset = {'type': 'CocoDataset', 'ann_file': 'a/b.json', 'data_root': 'data/', 'data_prefix': {'img': 'val'}, **arguments}
    loader = {'batch_size': 1, 'num_workers': 2, 'dataset': dataset}
    return {**model(), 'test_dataloader': loader, 'test_evaluator': {'type': 'CocoMetric', 'ann_file': 'data/a/b.json'}}


def test_data_with_names_of_classes_are_kept():
    names = ('a man (old)', "d'or", '{{ x }}', 'os.system')
    config, left_out = read(data(metainfo={'classes': names, 'palette': [(0, 0, 255)]}))
    assert config['test_dataloader']['dataset']['metainfo']['classes'] == names
    assert not left_out


def load_images(**arguments):
    return {'pipeline': [{'type': 'LoadImageFromFile', **arguments}]}


#: What is done to the data, and what is said.
DATA = {
    'a server': (data(**load_images(backend_args={'backend': 'http'})), 'backend_args'),
    'a download': (data(ann_file='http://example.org/a.json'), 'no plain word'),
    'a pickle': (data(ann_file='a.pkl'), r'no \.json'),
    'proposals': (data(proposal_file='a'), 'may not be set'),
    'a device': (data(ann_file='/dev/zero'), 'no file and no folder'),
    'another device': (data(data_root='../../../../../../../../../../../../../dev/'), 'no data'),
    'a file with classes': (data(metainfo={'classes': 'words'}), 'no name in a list'),
    'metainfo in a file': (data(metainfo='words'), 'no name in a list'),
    'another data set': (data(type='OpenImagesDataset'), 'not known to read local images only'),
    'a data set that downloads': (data(type='mmpretrain.CIFAR10', data_prefix=''), 'would download'),
    'a transform': (data(pipeline=[{'type': 'mmpretrain.torchvision/ToTensor', 'dtype': 'exit'}]), 'not known'),
    'a function': ({**data(), 'test_evaluator': {'type': 'os.system', 'command': 'true'}}, 'not known'),
    'an evaluator that writes': ({**data(), 'test_evaluator': {'type': 'CocoMetric', 'outfile_prefix': 'x'}}, 'may not be set'),
    'an evaluator that forks': ({**data(), 'test_evaluator': {'type': 'CocoMetric', 'use_mp_eval': True}}, 'may not be set'),
    'a dump': ({**data(), 'test_evaluator': {'type': 'DumpDetResults', 'out_file_path': 'x'}}, 'not known'),
    'another loop': ({**data(), 'test_cfg': {'type': 'mmengine.ValLoop'}}, 'not known'),
    'a worker': ({**data(), 'test_dataloader': {'worker_init_fn': {'type': 'x'}, 'dataset': {}}}, 'may not be set'),
    'many workers': ({**data(), 'test_dataloader': {'num_workers': 1000, 'dataset': {}}}, 'not plausible'),
}


@pytest.mark.parametrize('name', DATA)
def test_data_that_are_not_allowed_are_left_out(name):
    config, message = DATA[name]
    read_back, left_out = read(config)
    assert set(read_back) == {'default_scope', 'model'}
    assert message.replace('\\', '') in left_out['test_dataloader']


def calibrated(config):
    return {**config, 'train_dataloader': config['test_dataloader']}


@pytest.mark.parametrize('name', [name for name in DATA if 'workers' not in name and name != 'a worker'])
def test_data_that_are_to_be_read_are_refused(name):
    config, message = DATA[name]
    with pytest.raises(InputError, match=message):
        read(calibrated(config), calibrated=True)


def test_training_data_are_kept_for_calibration_with_the_pipeline_of_the_test_data():
    config = calibrated(data(**load_images()))
    config['train_dataloader'] = {'dataset': {**config['train_dataloader']['dataset'], 'pipeline': [{'type': 'Mosaic'}]}}
    kept, _ = read(config, calibrated=True)
    assert kept['train_dataloader'] == {'dataset': {**config['train_dataloader']['dataset'], **load_images()}}
