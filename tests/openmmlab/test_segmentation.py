"""MMSegmentation: networks train and deploy with the tools, and untrusted configs are checked."""

import json

import pytest
import torch
from forked import run_python
from helpers import ROOT, randomize, run_tool, save_network, segmentor
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmasr.convolutions import OREPA
from mmasr.convolutions.dynamic import DynamicConv
from mmasr.core.host import Host
from mmasr.deploy.export import export
from mmasr.deploy.quantize import Int8
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.experiments.shapes import write_shapes
from mmasr.openmmlab.building import build_model, load_weights
from mmasr.stripes import attention_modules
from mmasr.untrusted.checkpoint import read_checkpoint
from mmasr.untrusted.config_text import write_config
from mmasr.untrusted.embedded_config import read_config

pytest.importorskip('mmseg', reason='MMSegmentation is an optional extra')
pytestmark = pytest.mark.xdist_group('segmentation')  # one process, so that it trains only once
FPN = ROOT / 'configs/shapes/fpn_r18_asr_se.py'
#: One iteration per epoch, with small images.
SETTINGS = """
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=2))
model = dict(data_preprocessor=dict(size=(64, 64)))
"""
SE = """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        depth=50, base_channels=8, asr=None, plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv3')]
    ),
)
"""
# The tools run in one interpreter, because the import of OpenMMLab takes long.
TOOLS = """
import json, runpy, sys
from mmengine.visualization import Visualizer
for tool, *args in json.loads(sys.argv[1]):
    sys.argv = [tool, *args]
    runpy.run_path(tool, run_name='__main__')
    for kind in (Visualizer, *Visualizer.__subclasses__()):  # otherwise the next tool gets this visualizer
        kind._instance_dict.clear()
"""
# Stock MMSegmentation, in an interpreter without mmasr.
STOCK = """
import sys
import torch
from mmseg.apis import inference_model, init_model
config, checkpoint, image, out = sys.argv[1:]
model = init_model(config, checkpoint, device='cpu')
model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)
found = inference_model(model, image)
torch.save((found.seg_logits.data, found.pred_sem_seg.data), out)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Train, deploy and evaluate a small Semantic FPN; draw the stripes of one with SE; return the folder."""
    folder = tmp_path_factory.mktemp('segmentation')
    write_shapes(folder / 'data/shapes', train=2, val=2, size=64)
    for name, text in (('fpn', ''), ('se', SE)):
        (folder / f'{name}.py').write_text(f'_base_ = {str(FPN)!r}{SETTINGS}{text}')
    save_network(folder / 'se.pth', Config.fromfile(folder / 'se.py'))
    commands = [
        ('train.py', 'fpn.py', '--work-dir', 'work'),
        ('reparam.py', 'work/epoch_2.pth'),
        ('test.py', 'work/epoch_2_deploy.py', 'work/epoch_2_deploy.pth', '--work-dir', 'tested'),
        ('test.py', 'fpn.py', 'work/epoch_2.pth', '--work-dir', 'trained', '--show-dir', 'drawn'),
        ('stripes.py', 'se.py', 'se.pth', '--out', 'stripes'),
    ]
    commands = [(str(ROOT / 'tools' / tool), *args) for tool, *args in commands]
    result = run_python(TOOLS, json.dumps(commands), cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_deployed_network_has_the_metric_of_the_trained_one(folder):
    metrics = [
        json.loads(next((folder / name).glob('*/*.json')).read_text())['mIoU']
        for name in ('trained', 'tested')
    ]
    assert 0 < metrics[0] == metrics[1] <= 100
    validated = next((folder / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()[-1]
    assert json.loads(validated)['mIoU'] == metrics[0]


def test_predictions_are_drawn_into_the_given_folder(folder):
    assert len(list((folder / 'trained').glob('*/drawn/*.png'))) == 2


def test_the_whole_segmentor_is_exported(folder):
    onnxruntime = pytest.importorskip('onnxruntime')
    checkpoint = folder / 'work/epoch_2_deploy.pth'
    report = export(checkpoint, out=folder / 'a.onnx')
    assert report.left_out is None
    assert report.preprocessing.startswith('channels in the order RGB, minus [')
    assert report.dynamic == ('batch',)  # FPNHead uses the sizes of its feature maps as fixed numbers
    images = torch.randn(4, *report.inputs[0][1:])
    session = onnxruntime.InferenceSession(report.path, providers=['CPUExecutionProvider'])
    (found,) = session.run(['logits'], {'input': images.numpy()})
    model = build_model(Config.fromfile(folder / 'fpn.py'))
    load_weights(model.eval(), read_checkpoint(folder / 'work/epoch_2.pth')['state_dict'], 'epoch_2.pth')
    with torch.no_grad():
        expected = model(images, mode='tensor')
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_int8_is_measured_by_the_mean_intersection_over_union(folder, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(folder)
    found = export('work/epoch_2_deploy.pth', out='int.onnx', size=(64, 64), int8=Int8(images=2)).quantized
    assert found.metric == 'mIoU'
    # The graph computes what torch does, so the metric of float is that of the trained network.
    trained = json.loads(next((folder / 'trained').glob('*/*.json')).read_text())
    assert found.before['mIoU'] == pytest.approx(trained['mIoU'])
    result = run_tool('test.py', 'work/epoch_2_deploy.py', 'int_int8.onnx', '--work-dir', 'int8', cwd=folder)
    assert result.returncode == 0, result.stderr
    tested = json.loads(next((folder / 'int8').glob('*/*.json')).read_text())
    assert found.after['mIoU'] == pytest.approx(tested['mIoU'])


def test_stock_mmsegmentation_predicts_the_same(folder):
    deployed, image = folder / 'work/epoch_2_deploy.py', folder / 'data/shapes/val/0001.png'
    config = Config.fromfile(deployed)
    assert config.model.backbone.type == 'mmseg.ResNetV1c'
    assert 'custom_imports' not in config
    files = deployed, deployed.with_suffix('.pth'), image, folder / 'found.pt'
    run_python(STOCK, *files, without=['mmasr']).check_returncode()
    from mmseg.apis import inference_model

    model = build_model(Config.fromfile(folder / 'fpn.py'))
    model.cfg = config
    load_weights(model.eval(), read_checkpoint(folder / 'work/epoch_2.pth')['state_dict'], 'epoch_2.pth')
    assert sum(isinstance(module, Host) for module in model.modules()) == 8
    expected = inference_model(model, str(image))
    logits, classes = torch.load(folder / 'found.pt')
    assert torch.equal(logits, expected.seg_logits.data)  # training and folding use the same product
    assert torch.equal(classes, expected.pred_sem_seg.data)


def test_stripes_of_a_segmentor_are_drawn(folder):
    stripes = json.loads((folder / 'stripes/stripes.json').read_text())
    assert len(stripes['modules']) == 16


WEIGHTS = {'decode_head.conv_seg.weight': torch.zeros(19, 512, 1, 1)}
LOSS = {'type': 'CrossEntropyLoss'}
V1C = {
    'depth': 18,
    'stem_channels': 8,
    'base_channels': 8,
    'strides': (1, 2, 1, 1),
    'dilations': (1, 1, 2, 4),
}
RESNET = {'type': 'ResNetV1c', **V1C}
REGISTERED = {'type': 'mmasr.ASRResNetV1c', **V1C}
ASR = {'attention': {'type': 'SE'}}
STOCK_RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8}
#: Name -> backbone with re-parameterization, channels of its last feature map, deployed type, bound of the
#: error.
BACKBONES = {
    'ASR': ({**REGISTERED, 'asr': ASR}, 64, 'mmseg.ResNetV1c', 0),
    'OREPA': ({**REGISTERED, 'convs': {'type': 'OREPA'}}, 64, 'mmseg.ResNetV1c', 0),
    'DBB and ASR': ({**REGISTERED, 'convs': {'type': 'DBB'}, 'asr': ASR}, 64, 'mmseg.ResNetV1c', 1e-5),
    'X-volution': ({**REGISTERED, 'convs': {'type': 'XVolution'}}, 64, 'mmasr.ASRResNetV1c', 1e-5),
    'a wrapped backbone of MMSegmentation': (
        {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'MobileNetV2', 'widen_factor': 0.25}, 'asr': ASR},
        *(80, 'MobileNetV2', 0),
    ),
    "MMDetection's": (
        {**STOCK_RESNET, 'type': 'mmasr.ASRResNet', 'asr': ASR, 'norm_eval': False},
        64,
        'mmdet.ResNet',
        0,
    ),
    "MMDetection's, wrapped": (
        {'type': 'mmasr.ASRBackbone', 'backbone': STOCK_RESNET, 'asr': ASR},
        64,
        'mmdet.ResNet',
        0,
    ),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_segmentors_deploy_to_the_expected_backbone(tmp_path, name):
    backbone, channels, deployed, bound = BACKBONES[name]

    def initialized(network):
        network.init_weights()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        return network

    network = save_network(tmp_path / 'a.pth', segmentor(backbone, channels), initialized)
    report = reparameterize(tmp_path / 'a.pth')
    assert {difference.output.split(',')[0] for difference in report.differences} == {
        'logits',
        'auxiliary_head.0',
    }
    assert max(difference.relative for difference in report.differences) <= bound
    assert Config.fromfile(report.config).model.backbone.type == deployed
    assert len(report.ours) == sum(
        isinstance(m, DynamicConv) for m in build_model(Config.fromfile(report.config)).modules()
    )
    assert bool(report.ours) == (name == 'X-volution')
    assert sum(p.numel() for p in network.parameters()) > report.parameters[1]


@pytest.mark.parametrize('place', ['model', 'backbone', 'init_cfg'])
@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'wrapped'])
def test_pretrained_weights_load_wherever_the_config_names_them(tmp_path, wrapped, place):
    """MMSegmentation's configs name them in the model, which passes them to its backbone."""
    init_default_scope('mmseg')
    plain = randomize(MODELS.build(RESNET))
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    weights, asr = str(tmp_path / 'plain.pth'), {**ASR, 'init_identity': True}
    init = {
        'init_cfg': {'type': 'Pretrained', 'checkpoint': weights},
        'backbone': {'pretrained': weights},
    }.get(place, {})
    init = {'init_cfg': init} if place == 'init_cfg' else init
    inner = {**RESNET, **init}
    backbone = {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'asr': asr}
    config = segmentor(backbone if wrapped else {**inner, 'type': 'mmasr.ASRResNetV1c', 'asr': asr})
    model = MODELS.build({**config.model, **({'pretrained': weights} if place == 'model' else {})})
    model.init_weights()
    x = torch.rand(1, 3, 64, 64)
    plain.eval(), model.eval()
    for found, expected in zip(model.backbone(x), plain(x), strict=True):
        assert torch.equal(found, expected)
    assert sum(isinstance(module, Host) for module in model.modules()) == 8


@pytest.mark.parametrize(
    'name',
    [
        'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
        'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
        'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
        'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    ],
)
def test_configs_of_mmsegmentation_keep_their_model_and_test_data(name):
    config = Config.fromstring(f'_base_ = {f"mmseg::{name}"!r}', '.py')
    read, left_out = read_config(config.pretty_text, WEIGHTS)
    assert {'model', 'test_dataloader', 'test_evaluator'} <= set(read)
    assert set(config) == (set(read) | set(left_out)) - {'calibration_dataset'}
    assert 'pretrained' not in read['model']


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            segmentor({'type': 'VPD', 'diffusion_cfg': {'checkpoint': 'weights'}}),
            'loads checkpoints that it names',
        ),
        (segmentor({'type': 'mmseg.TIMMBackbone', 'model_name': 'resnet18'}), "downloads timm's weights"),
        (segmentor({'type': 'CLIPTextEncoder', 'dataset_name': 'ade'}), 'evaluates a string as Python'),
        (segmentor(RESNET, neck={**LOSS, 'class_weight': 'pkl'}), 'would be loaded as a file'),
    ],
    ids=['a diffusion model', 'weights of timm', 'a text encoder', 'weights of classes in a pickle'],
)
def test_a_segmentor_that_does_more_than_compute_is_rejected(model, message):
    with pytest.raises(InputError, match=message):
        read_config(model.pretty_text, WEIGHTS)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'seg_map_suffix': '/../../passwords.png'}, 'is not a plain word'),
        ({'type': 'DSDLSegDataset'}, 'not known to read only local images'),
        ({'pipeline': [{'type': 'LoadBiomedicalData'}]}, 'not known to read only local images'),
    ],
)
def test_test_data_that_is_not_allowed_is_left_out(change, message):
    dataset = {
        'type': 'BaseSegDataset',
        'data_root': 'data',
        'data_prefix': {'img_path': 'a'},
        'img_suffix': '.png',
        **change,
    }
    config = {**segmentor(RESNET).to_dict(), 'test_dataloader': {'dataset': dataset}}
    read, left_out = read_config(write_config(config), WEIGHTS)
    assert 'test_dataloader' not in read
    assert message in left_out['test_dataloader']


def test_an_evaluator_that_writes_files_is_left_out():
    config = {**segmentor(RESNET).to_dict(), 'test_evaluator': {'type': 'IoUMetric', 'output_dir': 'x'}}
    _, left_out = read_config(write_config(config), WEIGHTS)
    assert 'may not be set' in left_out['test_evaluator']


def test_attention_in_its_mobilenet_is_known():
    init_default_scope('mmseg')
    network = MODELS.build({'type': 'MobileNetV3', 'arch': 'small'})
    names = set(attention_modules(network))
    assert len(names) == 9
    assert not [site for site in OREPA.default_sites(network) if site.rpartition('.se.')[0] + '.se' in names]


def test_missing_cityscapes_is_reported_with_its_source(tmp_path, refusal):
    message = refusal('train.py', ROOT / 'configs/pspnet_r50_asr_se.py', cwd=tmp_path)
    assert 'data/cityscapes/leftImg8bit/train does not exist' in message
    assert 'https://www.cityscapes-dataset.com/downloads/' in message
