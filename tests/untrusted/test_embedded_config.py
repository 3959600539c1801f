"""The embedded config of a checkpoint: reduced to what deploying needs, and checked with the allow-list."""

import pytest
import torch
from mmengine.config import Config

from mmasr.errors import InputError
from mmasr.untrusted.config_text import write_config
from mmasr.untrusted.embedded_config import read_config

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
    """Return the config of a detector whose backbone has these arguments."""
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
def test_openmmlabs_configs_are_reduced_to_model_and_test_data(tmp_path, name):
    (tmp_path / 'config.py').write_text(f'_base_ = {name!r}')
    config = Config.fromfile(tmp_path / 'config.py')
    read, left_out = read_config(config.pretty_text, WEIGHTS)
    assert set(read) <= {
        'default_scope',
        'model',
        'data_preprocessor',
        'test_dataloader',
        'test_evaluator',
        'test_cfg',
        'test_pipeline',
        'calibration_dataset',
    }
    assert {'model', 'test_dataloader', 'test_evaluator', 'calibration_dataset'} <= set(read)
    assert set(config) == (set(read) | set(left_out)) - {'calibration_dataset'}
    assert 'init_cfg' not in read['model']['backbone']


def test_parts_that_are_left_out_are_reported():
    _, left_out = read(
        {**model(), 'custom_hooks': [{'type': 'os.system', 'command': 'true'}], 'load_from': 'http://x'}
    )
    assert left_out == dict.fromkeys(('custom_hooks', 'load_from'), 'deploying does not need it')


def test_sites_are_read_from_the_weights():
    asr = {'attention': {'type': 'SE'}, 'sites': '((.|.)*)*!'}
    config, _ = read(model(type='mmasr.ASRResNet', asr=asr, convs={'type': 'ACNet', 'sites': '(x+x+)+y'}))
    assert config['model']['backbone']['asr']['sites'] == ['layer1.0.bn2']
    assert config['model']['backbone']['convs']['sites'] == ['layer1.0.conv2']


def test_sites_of_a_wrapped_backbone_are_read_from_the_weights():
    wrapped = {
        'type': 'mmasr.ASRBackbone',
        'backbone': RESNET,
        'asr': {'attention': {'type': 'SE'}},
        'sites': '(a*)*b',
    }
    config, _ = read({'model': {'type': 'FasterRCNN', 'backbone': wrapped}})
    assert config['model']['backbone']['sites'] == ['layer1.0.bn2']


@pytest.mark.parametrize(
    'imports',
    [['mmasr', 'attacker_module'], 'attacker_module', ['mmasr_evil'], [' attacker_module'], ['mmdet.apis']],
)
def test_only_modules_of_models_are_imported(proof, imports):
    with pytest.raises(InputError, match=r'imports .*pass `trust_imports`'):
        read({**model(), 'custom_imports': {'imports': imports}})
    assert not proof.exists()


def test_trust_imports_imports_all_modules(proof):
    config, _ = read({**model(), 'custom_imports': {'imports': 'attacker_module'}}, trust_imports=True)
    assert proof.exists()
    assert config['custom_imports']['imports'] == ['attacker_module']


def test_a_missing_module_is_refused():
    with pytest.raises(
        InputError, match=r"imports mmdet\.models\.backbones\.no_such_module, .*can't be imported"
    ):
        read({**model(), 'custom_imports': {'imports': ['mmdet.models.backbones.no_such_module']}})


@pytest.mark.parametrize(
    'name', ['mmdet.models.backbones.resnet.ResNet', 'mmdet.ResNet', 'ResNet', 'mmpretrain.ResNet']
)
def test_a_class_is_found_under_each_of_its_names(name):
    read(model(type=name, norm_cfg={'type': 'SyncBN'}, roi_layer={'type': 'RoIAlign'}))


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('mmdet.models.ResNet', 'mmdet.ResNet'),
        ('mmdet.models.backbones.ResNet', 'mmdet.ResNet'),
        ('mmdet.models.backbones.resnet.ResNet', 'mmdet.ResNet'),
        ('mmasr.openmmlab.backbones.resnet.ASRResNet', 'mmasr.ASRResNet'),
        ('mmasr.openmmlab.plugins.ECAPlugin', 'mmasr.ECA'),
        ('torch.nn.ReLU', 'ReLU'),
        ('mmcv.ops.RoIAlign', 'RoIAlign'),
        ('mmdet.ResNet', 'mmdet.ResNet'),
    ],
)
def test_import_paths_of_new_style_configs_become_registered_names(path, name):
    config, _ = read({'model': {'type': 'mmdet.models.RetinaNet', 'backbone': {'type': path}}})
    assert config['model'] == {'type': 'mmdet.RetinaNet', 'backbone': {'type': name}}
    assert config['default_scope'] == 'mmdet'


NOT_A_WORD = 'is not a plain word'
#: Models that would do more than compute, and the error.
MODELS = {
    'a function': ({'type': 'os.system', 'command': 'true'}, r"builds 'os\.system'"),
    'a module': ({'type': 'attacker_module'}, "builds 'attacker_module'"),
    'a function of mmengine': ({'type': 'mmengine.dump', 'obj': 1, 'file': 'x'}, r"builds 'mmengine\.dump'"),
    'a function through a module': ({'type': 'mmengine.fileio.io.os.system'}, 'which no registry has'),
    'a runner': ({'type': 'mmengine.runner.runner.Runner', 'work_dir': 'x'}, 'which no registry has'),
    'a dataset': ({'type': 'mmpretrain.datasets.cifar.CIFAR10', 'download': True}, 'which no registry has'),
    'a class that another module imports': ({'type': 'mmdet.apis.inference.RetinaNet'}, 'which no registry'),
    'a class that is not allowed, by a shorter path': (
        {'type': 'mmdet.models.Detectron2Wrapper'},
        "builds Detectron2's models",
    ),
    'a nested function': (
        {**RESNET, 'x': [{'y': {'type': 'subprocess.run'}}]},
        r"backbone\.x\[0\]\.y builds 'subprocess\.run'",
    ),
    'a scope': ({**RESNET, '_scope_': 'attacker_module'}, "scope 'attacker_module'"),
    'a scope of another package': (
        {**RESNET, 'x': {'type': 'ReLU', '_scope_': 'antigravity'}},
        "scope 'antigravity'",
    ),
    'code for an NMS': ({**RESNET, 'nms': {'type': '__import__("os").getcwd'}}, 'which no registry has'),
    'code for a tracker': (
        {'type': 'CameraMotionCompensation', 'warp_mode': 'exit'},
        'evaluates a string as Python',
    ),
    'a teacher': ({'type': 'LAD', 'teacher_ckpt': 'weights'}, 'loads a teacher'),
    'a language model': ({'type': 'mmdet.BertModel', 'name': 'bert'}, 'not on the allow-list'),
    'a repository': ({'type': 'mmpretrain.HuggingFaceClassifier', 'model_name': 'x'}, 'downloads'),
    'answers': ({'type': 'mmpretrain.VQAGenerationHead', 'answer_list_path': 'weights'}, 'loads answers'),
    'weights of timm': (
        {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'x', 'checkpoint_path': 'weights'},
        r"backbone\.checkpoint_path is 'weights', and may not be set",
    ),
    'a repository of timm': (
        {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'hf_hub:a/b'},
        NOT_A_WORD,
    ),
    'a file': ({**RESNET, 'x': 'weights.pth'}, NOT_A_WORD),
    'a file as class weights': (
        {**RESNET, 'class_weight': 'weights'},
        r"class_weight is 'weights', which would be loaded as a file",
    ),
    'a path': ({**RESNET, 'x': '/etc/passwd'}, NOT_A_WORD),
    'an address': ({**RESNET, 'x': 'https://example.com'}, NOT_A_WORD),
    'brackets': ({**RESNET, 'x': 'f(1)'}, NOT_A_WORD),
    'a substitution': ({**RESNET, 'x': '{{ fileDirname }}'}, NOT_A_WORD),
    'control characters': ({**RESNET, 'x': '\x1b[31m'}, NOT_A_WORD),
    'a key that breaks out of its quotes': ({**RESNET, "x': open('proof', 'w'), 'y": 1}, 'has the key'),
    'a key of mmengine': ({**RESNET, '_delete_': True}, "has the key '_delete_'"),
    'a number as a key': ({**RESNET, 'x': {1: 2}}, 'has the key 1'),
    'a large number': ({**RESNET, 'base_channels': 10**7}, 'base_channels is 10000000, .* not plausible'),
    'NaN': ({**RESNET, 'x': float('nan')}, r'x is NaN'),
    'many entries': ({**RESNET, 'x': [0] * 10**5}, 'more than 100,000 entries'),
}


@pytest.mark.parametrize('name', MODELS)
def test_a_forbidden_model_is_refused(name):
    backbone, message = MODELS[name]
    with pytest.raises(InputError, match=message):
        read({'model': {'type': 'FasterRCNN', 'backbone': backbone}})


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("model = dict(type='FasterRCNN', x=b'{{ a }}')", 'not plain data'),
        ("model = dict(type='FasterRCNN', x={'a'})", 'not plain data'),
        ("model = dict(type='FasterRCNN', x={('a', 1): 2})", 'has the key'),
        ('model = 3', 'it has no model'),
        ("default_scope = 'antigravity'", "scope 'antigravity'"),
    ],
    ids=['bytes', 'a set', 'a tuple as a key', 'a number', 'a scope'],
)
def test_anything_but_plain_data_is_refused(line, message):
    with pytest.raises(InputError, match=message):
        read_config(f"default_scope = 'mmdet'\n{write_config(model())}{line}", WEIGHTS)


def data(**arguments):
    """Return a config with a test set that has these arguments."""
    dataset = {
        'type': 'CocoDataset',
        'ann_file': 'a/b.json',
        'data_root': 'data/',
        'data_prefix': {'img': 'val'},
        **arguments,
    }
    loader = {'batch_size': 1, 'num_workers': 2, 'dataset': dataset}
    return {
        **model(),
        'test_dataloader': loader,
        'test_evaluator': {'type': 'CocoMetric', 'ann_file': 'data/a/b.json'},
    }


def test_names_of_classes_may_contain_any_characters():
    names = ('a man (old)', "d'or", '{{ x }}', 'os.system')
    config, left_out = read(data(metainfo={'classes': names, 'palette': [(0, 0, 255)]}))
    assert config['test_dataloader']['dataset']['metainfo']['classes'] == names
    assert not left_out


def load_images(**arguments):
    return {'pipeline': [{'type': 'LoadImageFromFile', **arguments}]}


#: Forbidden data, and the error.
DATA = {
    'a server': (data(**load_images(backend_args={'backend': 'http'})), 'backend_args'),
    'a download': (data(ann_file='http://example.org/a.json'), NOT_A_WORD),
    'a pickle': (data(ann_file='a.pkl'), r'not a \.json'),
    'proposals': (data(proposal_file='a'), 'may not be set'),
    'a device': (data(ann_file='/dev/zero'), 'neither a file nor a folder'),
    'another device': (data(data_root='../../../../../../../../../../../../../dev/'), 'is not data'),
    'a file with classes': (data(metainfo={'classes': 'words'}), 'not a name in a list'),
    'metainfo in a file': (data(metainfo='words'), 'not a name in a list'),
    'another dataset': (data(type='OpenImagesDataset'), 'not known to read only local images'),
    'a dataset that downloads': (data(type='mmpretrain.CIFAR10', data_prefix=''), 'would download'),
    'a transform': (
        data(pipeline=[{'type': 'mmpretrain.torchvision/ToTensor', 'dtype': 'exit'}]),
        'not known',
    ),
    'a function': ({**data(), 'test_evaluator': {'type': 'os.system', 'command': 'true'}}, 'not known'),
    'an evaluator that writes': (
        {**data(), 'test_evaluator': {'type': 'CocoMetric', 'outfile_prefix': 'x'}},
        'may not be set',
    ),
    'an evaluator that forks': (
        {**data(), 'test_evaluator': {'type': 'CocoMetric', 'use_mp_eval': True}},
        'may not be set',
    ),
    'a dump': ({**data(), 'test_evaluator': {'type': 'DumpDetResults', 'out_file_path': 'x'}}, 'not known'),
    'another loop': ({**data(), 'test_cfg': {'type': 'mmengine.ValLoop'}}, 'not known'),
    'a function for workers': (
        {**data(), 'test_dataloader': {'worker_init_fn': {'type': 'x'}, 'dataset': {}}},
        'may not be set',
    ),
    'many workers': ({**data(), 'test_dataloader': {'num_workers': 1000, 'dataset': {}}}, 'not plausible'),
    'large batches': ({**data(), 'test_dataloader': {'batch_size': 10**5, 'dataset': {}}}, 'not plausible'),
}


@pytest.mark.parametrize('name', DATA)
def test_forbidden_data_is_left_out(name):
    config, message = DATA[name]
    read_back, left_out = read(config)
    assert set(read_back) == {'default_scope', 'model'}
    assert message.replace('\\', '') in left_out['test_dataloader']


def with_training_data(config):
    return {**config, 'train_dataloader': config['test_dataloader']}


@pytest.mark.parametrize('name', DATA)
def test_forbidden_data_is_refused_if_it_is_to_be_read(name):
    config, message = DATA[name]
    with pytest.raises(InputError, match=message):
        read(with_training_data(config), calibrates=True)


def test_calibration_uses_training_images_with_the_pipeline_of_the_test_data():
    config = with_training_data(data(**load_images()))
    config['train_dataloader'] = {
        'dataset': {**config['train_dataloader']['dataset'], 'pipeline': [{'type': 'Mosaic'}]}
    }
    kept, _ = read(config, calibrates=True)
    assert 'train_dataloader' not in kept
    assert kept['calibration_dataset'] == {**config['train_dataloader']['dataset'], **load_images()}
