"""int8 files: exported, calibrated and measured on the data of the config."""

import json

import pytest
import torch
from helpers import (
    classifier,
    full_disk,
    randomize_norms,
    run_tool,
    save_network,
    with_images,
)
from mmengine.config import Config

from mmasr.deploy import quantize as quantizing
from mmasr.deploy.export import export
from mmasr.deploy.quantize import Int8
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'norm_eval': False, 'out_indices': (3,)}


@pytest.fixture
def network(images, tmp_path):
    """Return a function that saves a classifier with its data, deploys it and returns the checkpoint."""

    def save(**training):
        backbone = {**RESNET, **training, 'type': 'mmasr.ASRResNet'} if training else RESNET
        save_network(tmp_path / 'a.pth', with_images(classifier(backbone, 64), images), randomize_norms)
        return reparameterize(tmp_path / 'a.pth').checkpoint if training else tmp_path / 'a.pth'

    return save


def files(folder):
    return {path.name for path in folder.iterdir()}


def quantized_inputs(path):
    """Return the types of operators whose inputs are dequantized int8 values."""
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == 'DequantizeLinear'}
    return {node.op_type for node in graph.node if dequantized.intersection(node.input)}


@pytest.mark.parametrize(
    'training',
    [{}, {'asr': {'attention': {'type': 'SE'}}}, {'convs': {'type': 'DBB'}}],
    ids=['plain', 'ASR', 'DBB'],
)
def test_a_deployed_file_is_quantized_with_the_data_that_it_names(network, training):
    report = export(network(**training), size=(64, 64), int8=Int8(images=8))
    found = report.quantized
    assert report.int8_path == report.path.with_name(f'{report.path.stem}_int8.onnx')
    assert report.int8_path.stat().st_size == found.bytes[1]
    assert report.path.stat().st_size == found.bytes[0] == report.bytes
    assert found.bytes[1] < 0.5 * found.bytes[0]
    assert found.images == 8
    assert found.metric == 'accuracy/top1'
    assert found.before.keys() == found.after.keys() == {'accuracy/top1'}
    assert found.size == (64, 64)
    assert found.kept == []
    assert {'Conv', 'Gemm'} <= quantized_inputs(report.int8_path)
    weights = [tensor for tensor in onnx.load(report.int8_path).graph.initializer if len(tensor.dims) == 4]
    assert len(weights) == 20
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)
    image = torch.randn(2, 3, 64, 64).numpy()
    outputs = [
        onnxruntime.InferenceSession(str(path)).run(None, {'input': image})[0]
        for path in (report.path, report.int8_path)
    ]
    # Rounding to 8 bits is noise of half a percent in every layer; 21 of them sum up to less than a tenth.
    assert 0 < abs(outputs[0] - outputs[1]).max() < 0.1 * abs(outputs[0]).max()


def test_the_noise_is_that_of_rounding_to_eight_bits(network):
    noise = {layer.layer: layer for layer in export(network(), int8=Int8(images=8)).quantized.noise}
    assert len(noise) == 21
    assert {'backbone.conv1', 'backbone.layer3.0.downsample.0', 'backbone.layer4.1.conv2', 'head.fc'} < {
        *noise
    }
    for layer in noise.values():
        # A channel's largest weight is 127 steps; rounding errors are uniform, 0.29 steps; and the root mean
        # square of weights that start from a normal distribution is about a third of the largest one.
        assert 0.002 < layer.weights < 0.02
        assert 0 < layer.outputs < 0.1
    added = [layer.outputs - layer.inputs for layer in noise.values()]
    assert added == sorted(added, reverse=True)


def test_a_layer_with_one_large_map_adds_most_noise(images, tmp_path):
    def prepare(model):
        randomize_norms(model)
        with torch.no_grad():
            model.backbone.layer2[0].bn1.weight[0] = 1000.0  # takes nearly all of the range of this map
            model.backbone.layer2[0].conv2.weight[:, 0] = 0.0  # and is not used
        return model

    save_network(tmp_path / 'a.pth', with_images(classifier(RESNET, 64), images), prepare)
    worst = export(tmp_path / 'a.pth', int8=Int8(images=8)).quantized.noise
    around = {'backbone.layer2.0.conv1', 'backbone.layer2.0.conv2'}
    assert {worst[0].layer, worst[1].layer} == around
    found = export(tmp_path / 'a.pth', force=True, int8=Int8(8, keep_float=sorted(around))).quantized
    assert found.kept == sorted(around)
    assert found.noise[0].outputs < 0.5 * max(layer.outputs for layer in worst)


def test_a_module_keeps_all_its_layers_in_float(network):
    report = export(network(), int8=Int8(8, keep_float=['backbone.layer4', 'head']))
    kept = report.quantized.kept
    assert len(kept) == 6
    assert all(name.startswith(('backbone.layer4.', 'head.')) for name in kept)
    assert not {*kept} & {layer.layer for layer in report.quantized.noise}
    weights = [tensor for tensor in onnx.load(report.int8_path).graph.initializer if len(tensor.dims) >= 2]
    assert [tensor.data_type for tensor in weights].count(onnx.TensorProto.FLOAT) == 6


def test_the_config_of_the_training_gives_a_deployed_file_its_data(network, images, tmp_path):
    checkpoint = network(asr={'attention': {'type': 'SE'}})
    content = torch.load(checkpoint, weights_only=True)
    deployed = Config.fromstring(content['meta']['cfg'], '.py')
    assert deployed.calibration_dataset.data_root == str(images)
    for part in ('calibration_dataset', 'test_dataloader', 'test_evaluator'):
        deployed.pop(part)
    content['meta']['cfg'] = deployed.pretty_text
    torch.save(content, checkpoint)
    refused(tmp_path, 'the config has no train_dataloader and test_dataloader', checkpoint)
    trained = Config.fromstring(torch.load(tmp_path / 'a.pth')['meta']['cfg'], '.py')
    assert trained.model.backbone.type == 'mmasr.ASRResNet'
    trained.dump(tmp_path / 'own.py')
    assert export(checkpoint, tmp_path / 'own.py', int8=Int8(8)).quantized.images == 8


def test_the_config_of_the_training_replaces_a_refused_one(network, tmp_path):
    deployed = network(asr={'attention': {'type': 'SE'}})
    content = torch.load(deployed, weights_only=True)
    training = torch.load(tmp_path / 'a.pth', weights_only=True)['meta']['cfg']
    (tmp_path / 'training.py').write_text(training)
    content['meta']['cfg'] = 'import os'
    torch.save(content, deployed)
    with pytest.raises(InputError, match='the embedded config is not used'):
        export(deployed, size=(64, 64), int8=Int8(images=8))
    report = export(deployed, tmp_path / 'training.py', size=(64, 64), int8=Int8(images=8))
    assert report.int8_path.exists()


@pytest.mark.parametrize('branch', ['pssa', 'sa'])
def test_a_deployed_xvolution_is_quantized(network, branch):
    report = export(network(convs={'type': 'XVolution', 'branch': branch}), int8=Int8(8))
    assert 'Conv' in quantized_inputs(report.int8_path)
    # The scores of `sa` are minus infinity outside the image; its softmax stays in float.
    assert all(0 < layer.outputs < 0.2 for layer in report.quantized.noise)


def refused(folder, message, *args, int8=None, **options):
    """Check that the export is refused, and that the folder has the same files."""
    before = files(folder)
    with pytest.raises(InputError, match=message):
        export(*args, int8=int8 or Int8(8), **options)
    assert files(folder) == before


def test_a_file_that_loses_too_much_is_refused(network, tmp_path, monkeypatch):
    checkpoint = network()
    results = iter([{'accuracy/top1': 75.0}, {'accuracy/top1': 74.0}] * 2)
    monkeypatch.setattr(quantizing, 'evaluate', lambda *_: next(results))
    message = (
        r'int8 loses 1\.00 points of accuracy/top1, more than `max_drop` 0\.5; use `keep_float` for the .*: b'
    )
    refused(tmp_path, message, checkpoint, int8=Int8(8, max_drop=0.5))
    assert export(checkpoint, int8=Int8(8, max_drop=1)).quantized.after == {'accuracy/top1': 74.0}


def test_an_unknown_layer_is_refused(network, tmp_path):
    message = '`keep_float` backbone.conv: no such layer; the layers are backbone.conv1, '
    refused(tmp_path, message, network(), int8=Int8(8, keep_float=['backbone.conv']))


def test_missing_data_is_reported(network, tmp_path):
    config = Config.fromstring(torch.load(network())['meta']['cfg'], '.py')
    config.train_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    config.dump(tmp_path / 'own.py')
    refused(tmp_path, 'nowhere does not exist', tmp_path / 'a.pth', tmp_path / 'own.py')
    config.pop('test_evaluator')
    config.dump(tmp_path / 'own.py')
    refused(tmp_path, 'no test_evaluator to measure with', tmp_path / 'a.pth', tmp_path / 'own.py')


def test_images_of_another_size_than_a_fixed_graph_takes_are_refused(images, tmp_path):
    backbone = {
        'type': 'mmpretrain.VisionTransformer',
        'arch': {'embed_dims': 8, 'num_layers': 1, 'num_heads': 2, 'feedforward_channels': 8},
        'img_size': 48,
        'patch_size': 16,
    }
    config = with_images(classifier(backbone, 8, neck=False), images)
    config.model.head.type = 'VisionTransformerClsHead'
    save_network(tmp_path / 'a.pth', config)
    message = (
        'the graph takes images of 48 x 48 pixels only, and the data has some of 64 x 64; pass their `size`'
    )
    refused(tmp_path, message, tmp_path / 'a.pth', size=(48, 48))
    assert export(tmp_path / 'a.pth', size=(64, 64), int8=Int8(8)).quantized.images == 8


def test_a_full_disk_leaves_no_file(network, tmp_path):
    checkpoint = network()
    size = export(checkpoint).bytes
    (tmp_path / 'a.onnx').unlink()
    with full_disk(int(1.02 * size)):  # enough for the float file, but not for those of the quantizer
        refused(tmp_path, 'the quantizer failed: OSError: .*File too large', checkpoint)


def test_values_that_are_too_small_are_refused():
    with pytest.raises(InputError, match='`images` 0: use a few hundred, at least one'):
        Int8(images=0)
    with pytest.raises(InputError, match='`max_drop` -1: at least 0'):
        Int8(max_drop=-1)


def test_the_tool_names_its_options(network, tmp_path, refusal):
    assert '--calibrate needs --int8' in refusal('export.py', network(), '--calibrate', 3, cwd=tmp_path)


def test_the_tools_export_and_evaluate_a_classifier(network, tmp_path):
    checkpoint = network(asr={'attention': {'type': 'SE'}})
    result = run_tool('export.py', checkpoint, '--int8', '--calibrate', 8, '--max-drop', 100, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in (
        'accuracy/top1',
        'size, MiB',
        'latency, ms',
        'Noise relative to the values',
        'a_deploy_int8',
    ):
        assert text in result.stdout
    accuracy = next(line for line in result.stdout.splitlines() if 'accuracy/top1' in line).split('│')
    config = Config.fromstring(torch.load(tmp_path / 'a.pth')['meta']['cfg'], '.py')  # in training form
    config.pop('train_dataloader', None)  # a runner that has it needs the rest of a training, too
    config.test_cfg = {}
    config.dump(tmp_path / 'own.py')
    result = run_tool('test.py', 'own.py', 'a_deploy_int8.onnx', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / 'work_dirs/own').rglob('*.json')
    assert json.loads(log.read_text())['accuracy/top1'] == pytest.approx(float(accuracy[3]))


def test_a_two_stage_detector_is_quantized_and_evaluated(shapes, se_checkpoint, refusal, monkeypatch):
    config, checkpoint = se_checkpoint
    monkeypatch.chdir(shapes)
    report = export(checkpoint, out='two.onnx', int8=Int8(4))
    assert report.quantized.metric == 'coco/bbox_mAP'
    parts = {layer.layer.split('.')[0] for layer in report.quantized.noise}
    assert parts == {'backbone', 'neck', 'rpn_head'}
    message = refusal('test.py', config, 'two_int8.onnx', cwd=shapes)
    assert 'pass its weights with --cfg-options load_from=CHECKPOINT' in message
    options = ['--cfg-options', f'load_from={checkpoint}', '--work-dir', 'two']
    result = run_tool('test.py', config, 'two_int8.onnx', *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    (log,) = (shapes / 'two').rglob('*.json')
    found = json.loads(log.read_text())
    for name, value in report.quantized.after.items():
        assert found[name] == pytest.approx(value)


@pytest.fixture(scope='module')
def openvino_outputs():
    """Return a function that computes a file with OpenVINO."""
    openvino = pytest.importorskip('openvino')

    def run(path, image):
        compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        return torch.from_numpy(compiled(image)[0])

    return run


def test_openvino_reads_both_files(network, openvino_outputs):
    report = export(network(asr={'attention': {'type': 'SE'}}), int8=Int8(8))
    image = torch.randn(2, 3, 64, 64).numpy()
    for path, bound in ((report.path, 1e-4), (report.int8_path, 0.05)):
        expected = torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {'input': image})[0])
        # int8: a rounding that differs by one step is 1 / 255 of the range of a map.
        assert (openvino_outputs(path, image) - expected).abs().max() <= bound * expected.abs().max()
