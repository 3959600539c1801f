"""Export of deployed checkpoints to ONNX; and torch.export of networks, deployed and in training form."""

import copy
import functools
import inspect
import sys
from collections import Counter

import pytest
import torch
from helpers import SHAPES_CONFIG, Touch, classifier, retinanet, run_tool, save_network
from mmdet.models import ResNet
from mmengine.config import Config
from torch import nn
from versions import FULL_GRAPH

import mmasr
from mmasr.deploy import export as exporting
from mmasr.deploy.export import export
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

ASR = {'attention': {'type': 'SE'}}
RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'norm_eval': False}


def resnet(**training):
    """Return the config of a narrow ResNet, with ``asr`` or ``convs`` in training form."""
    return {**RESNET, **training, 'type': 'mmasr.ASRResNet'} if training else RESNET


def classifying(**training):
    return classifier({**resnet(**training), 'out_indices': (3,)}, 64)


def one_stage(**training):
    """Return the config of a narrow RetinaNet whose data preprocessor normalizes."""
    config = retinanet(resnet(**training))
    config.model.data_preprocessor = {
        'type': 'DetDataPreprocessor',
        'mean': [1.0, 2.0, 3.0],
        'std': [4.0, 5.0, 6.5],
        'pad_size_divisor': 32,
    }
    return config


def two_stage(**training):
    """Return the config of a narrow Mask R-CNN."""
    config = Config.fromfile(SHAPES_CONFIG)
    config.model.backbone = resnet(**training)
    config.model.neck.in_channels = [8, 16, 32, 64]
    return Config({key: config[key] for key in ('model', 'default_scope', 'custom_imports')})


def trained(network):
    """Draw all values that a wrong fold would change; return the network in eval mode."""
    for module in network.modules():
        if isinstance(module, mmasr.ASR):
            nn.init.normal_(module.psi)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    network.eval()
    return network


def deployed(folder, config):
    """Return the deployed checkpoint of a trained network of a config, and the trained network."""
    network = save_network(folder / 'a.pth', config, trained)
    return reparameterize(folder / 'a.pth').checkpoint, network


def run(path, images):
    """Return the outputs of ONNX Runtime by name."""
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {'input': images.numpy()})), strict=True))


def flat(value):
    """Return the tensors in nested tuples, in order."""
    return [value] if isinstance(value, torch.Tensor) else [tensor for item in value for tensor in flat(item)]


def files(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


LEVELS = [f'{name}_{level}' for name in ('cls_score', 'bbox_pred') for level in range(5)]
NETWORKS = {
    'classifier': (classifying, lambda model, x: model(x, mode='tensor'), ['logits']),
    'one-stage': (
        one_stage,
        lambda model, x: model.bbox_head(model.extract_feat(x)),
        [f'{name}_{level}' for name in ('cls_score', 'bbox_pred') for level in range(3)],
    ),
    'two-stage': (
        two_stage,
        lambda model, x: (features := model.extract_feat(x), model.rpn_head(features)),
        [*(f'features_{level}' for level in range(5)), *(f'rpn_{name}' for name in LEVELS)],
    ),
}


@pytest.mark.parametrize('kind', NETWORKS)
def test_the_file_computes_the_same_as_the_trained_network_on_any_batch(tmp_path, kind):
    config, part, names = NETWORKS[kind]
    checkpoint, network = deployed(tmp_path, config(asr=ASR))
    report = export(checkpoint)
    assert report.path == tmp_path / 'a_deploy.onnx'
    assert report.dynamic == ('batch', 'height', 'width')
    assert report.fixed is None
    assert list(report.outputs) == names == [difference.output for difference in report.differences]
    assert 0 < max(difference.relative for difference in report.differences) <= 1e-4
    for shape in [(4, 3, 96, 128), (1, 3, 71, 65)]:  # other shapes than those of the check
        images = torch.randn(shape)
        with torch.no_grad():
            expected = flat(part(network, images))
        found = run(report.path, images)
        assert list(found) == names
        for tensor, value in zip(expected, found.values(), strict=True):
            assert (tensor - value).abs().max() <= 1e-4 * tensor.abs().max()


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ('kind', 'training'),
    [
        *((kind, {'asr': ASR}) for kind in NETWORKS),
        ('classifier', {'convs': {'type': 'OREPA'}, 'asr': ASR}),
        ('classifier', {'convs': {'type': 'DBB'}}),
        ('two-stage', {'convs': {'type': 'ACNet'}}),
    ],
    ids=lambda value: value if isinstance(value, str) else '+'.join(value),
)
def test_the_graph_has_the_operators_of_the_plain_network(tmp_path, kind, training):
    config = NETWORKS[kind][0]
    save_network(tmp_path / 'plain.pth', config(), trained)
    plain = export(tmp_path / 'plain.pth')
    counted = operators(export(deployed(tmp_path, config(**training))[0]).path)
    assert counted == operators(plain.path)
    assert counted['Conv'] >= 20
    assert counted['BatchNormalization'] == 0  # folded into the convolutions by the exporter, in both


@pytest.mark.parametrize('branch', ['pssa', 'sa', 'involution'])
def test_a_deployed_xvolution_is_exported(tmp_path, branch):
    checkpoint, network = deployed(tmp_path, classifying(convs={'type': 'XVolution', 'branch': branch}))
    report = export(checkpoint)
    assert report.dynamic == ('batch', 'height', 'width')
    images = torch.randn(2, 3, 90, 70)
    with torch.no_grad():
        expected = network(images, mode='tensor')
    assert (run(report.path, images)['logits'] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_tool_prints_the_comparison_the_preprocessing_and_what_is_left_out(tmp_path):
    checkpoint, _ = deployed(tmp_path, two_stage(asr=ASR))
    result = run_tool('export.py', checkpoint.name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    printed = result.stdout
    assert 'relative (bound 1e-04)' in printed
    assert '│ rpn_bbox_pred_4 │' in printed
    assert (
        'MaskRCNN, opset 17; ONNX Runtime and torch compared on 2x3x224x224, 1x3x160x288, 3x3x257x193'
        in printed
    )
    order = 'input: batch x 3 x height x width, channels in the order RGB'
    assert f'{order}, minus [123.675, 116.28, 103.53], divided by' in printed
    assert 'not exported: the RoI heads, ' in printed
    assert 'MMDeploy' in printed
    assert 'wrote a_deploy.onnx, ' in printed
    onnx.checker.check_model(tmp_path / 'a_deploy.onnx')


def test_the_preprocessing_is_that_of_the_data_preprocessor(tmp_path):
    save_network(tmp_path / 'a.pth', one_stage())
    preprocessing = export(tmp_path / 'a.pth').preprocessing
    assert (
        preprocessing
        == 'channels in the order BGR, minus [1.0, 2.0, 3.0], divided by [4.0, 5.0, 6.5], float32'
    )


VIT = {'embed_dims': 8, 'num_layers': 1, 'num_heads': 2, 'feedforward_channels': 8}


def test_a_network_for_one_image_size_is_exported_for_that_size(tmp_path):
    backbone = {'type': 'mmpretrain.VisionTransformer', 'arch': VIT, 'img_size': 48, 'patch_size': 16}
    config = classifier(backbone, 8, neck=False)
    config.model.head.type = 'VisionTransformerClsHead'
    save_network(tmp_path / 'a.pth', config)
    report = export(tmp_path / 'a.pth', size=(48, 64))
    assert report.dynamic == ('batch',)
    # With other sizes, it would interpolate its positions.
    assert 'the graph in ONNX Runtime differs from the network in torch' in report.fixed
    assert report.inputs == [(2, 3, 48, 64), (1, 3, 48, 64), (3, 3, 48, 64)]
    assert run(report.path, torch.randn(5, 3, 48, 64))['logits'].shape == (5, 10)


def refused(folder, message, *args, **options):
    """Check that the export is refused in one line, and that no file of the folder changes."""
    before = files(folder)
    with pytest.raises(InputError, match=message) as caught:
        export(*args, **options)
    assert '\n' not in str(caught.value)
    assert files(folder) == before


@pytest.mark.parametrize('training', [{'asr': ASR}, {'convs': {'type': 'DBB'}}], ids=['ASR', 'branches'])
def test_a_training_form_is_refused(tmp_path, training):
    save_network(tmp_path / 'a.pth', classifying(**training), trained)
    message = r'a\.pth still has re-parameterization to fold: .*; run tools/reparam\.py .*a\.pth first'
    refused(tmp_path, message, tmp_path / 'a.pth')


@pytest.fixture
def plain(tmp_path):
    """Return the checkpoint of a stock network."""
    save_network(tmp_path / 'a.pth', classifying(), trained)
    return tmp_path / 'a.pth'


def test_a_graph_that_differs_is_refused(plain, tmp_path, monkeypatch):
    (tmp_path / 'a.onnx').write_text('old')
    torch_export = torch.onnx.export

    @functools.wraps(torch_export)
    def other(graph, *args, **options):
        graph = copy.deepcopy(graph)
        graph.model.head.fc.bias.data += 0.01
        torch_export(graph, *args, **options)

    monkeypatch.setattr(torch.onnx, 'export', other)
    message = (
        'graph in ONNX Runtime differs from the network in torch: logits by .*, more than 1e-04; nothing'
    )
    refused(tmp_path, message, *(plain, None, None, True))


def test_an_existing_file_is_replaced_only_with_force(plain, tmp_path, refusal):
    (tmp_path / 'a.onnx').write_text('old')
    assert 'a.onnx already exists; pass --force' in refusal('export.py', plain, cwd=tmp_path)
    assert (tmp_path / 'a.onnx').read_text() == 'old'
    assert run(export(plain, force=True).path, torch.randn(1, 3, 64, 64))['logits'].shape == (1, 10)


def test_an_operator_that_onnx_does_not_have_is_refused(tmp_path):
    deformable = {
        'depth': 50,
        'out_indices': (3,),
        'dcn': {'type': 'DCN'},
        'stage_with_dcn': (False, False, False, True),
    }
    save_network(tmp_path / 'a.pth', classifier({**RESNET, **deformable}, 256))
    refused(tmp_path, 'the export failed: .*DeformConv2d.*; nothing was written', tmp_path / 'a.pth')


def test_weights_too_large_for_an_onnx_file_are_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, '_MAX_BYTES', 1000)
    refused(tmp_path, 'its weights take .* GiB in float32; an ONNX file can have 2 GiB', plain)


def test_another_name_is_refused(plain, tmp_path):
    refused(tmp_path, r'must be named \*\.onnx', plain, None, tmp_path / 'a.pb')


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_without_its_packages_the_tool_names_the_extra(plain, tmp_path, refusal, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert 'exported files need onnx and onnxruntime: pip install onnx onnxruntime' in refusal(
        'export.py', plain, cwd=tmp_path
    )


def test_nothing_in_a_checkpoint_runs(plain, tmp_path):
    checkpoint = torch.load(plain)
    ran = tmp_path / 'ran'
    torch.save({**checkpoint, 'meta': {'cfg': f'open({str(ran)!r}, "w")'}}, tmp_path / 'b.pth')
    refused(tmp_path, 'the embedded config is not used: it is not plain data', tmp_path / 'b.pth')
    torch.save({**checkpoint, 'more': Touch(ran)}, tmp_path / 'c.pth')
    refused(tmp_path, 'refused, since loading it would use', tmp_path / 'c.pth')
    config = tmp_path / 'own.py'
    classifying().dump(config)
    torch.save(checkpoint['state_dict'], tmp_path / 'd.pth')
    refused(tmp_path, 'has no config in it', tmp_path / 'd.pth')
    assert export(tmp_path / 'd.pth', config).path == tmp_path / 'd.onnx'
    assert not ran.exists()


#: Whether torch.export has a mode that is not strict; its first versions have none.
CAN_BE_LAX = 'strict' in inspect.signature(torch.export.export).parameters


@pytest.mark.parametrize('strict', [True, False], ids=['strict', 'not strict'])
@pytest.mark.parametrize('form', ['training', 'deployed'])
@pytest.mark.parametrize('kind', ['SE', 'OREPA', 'XVolution'])
def test_torch_export(kind, form, strict):
    """The exported program computes the same as the network, from its current parameters."""
    if not (strict or CAN_BE_LAX):
        pytest.skip('this torch.export is always strict')
    if strict and form == 'training' and kind != 'XVolution' and not FULL_GRAPH:
        pytest.skip('this torch.export cannot trace a host')
    network = ResNet(
        18, base_channels=8, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), norm_eval=False
    )
    mmasr.attach(network, {'type': kind}, sites=['layer1.0.conv2'] if kind == 'XVolution' else None)
    trained(network)
    if form == 'deployed':
        mmasr.fold(network)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(images)  # fills the eval cache of hosts
        program = torch.export.export(network, (images,), **({'strict': strict} if CAN_BE_LAX else {}))
        for _ in range(2):
            for expected, found in zip(network(images), program.module()(images), strict=True):
                assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
            for parameter in network.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
