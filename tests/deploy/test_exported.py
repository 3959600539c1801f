"""Networks whose exported part is computed by ONNX Runtime predict what the exported network predicts."""

import pytest
import torch
from helpers import classifier, config_of, retinanet, segmentor, small_detector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmasr.deploy import export as exporting
from mmasr.deploy.compare import data_samples, is_detector
from mmasr.deploy.export import write_graph
from mmasr.deploy.exported import Graph, computed_by
from mmasr.errors import InputError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'norm_eval': False}


def classifying():
    return classifier({**RESNET, 'out_indices': (3,)}, 64)


def whole(**settings):
    return segmentor(dict(RESNET), train_cfg={}, test_cfg={'mode': 'whole', **settings})


def in_crops():
    return whole(mode='slide', crop_size=(64, 64), stride=(48, 48))


def of_mmdetection(name):
    """Return a function that returns the config of a narrow detector of MMDetection."""

    def config():
        from openmmlab.test_detector_families import CONFIGS, narrow

        detector = Config.fromfile(CONFIGS / name).model
        narrow(detector, by=8)
        return config_of(detector, 'mmdet')

    return config


NETWORKS = {
    'classifier': classifying,
    'classifier of timm': lambda: config_of(
        {'type': 'TimmClassifier', 'model_name': 'resnet18', 'num_classes': 10}, 'mmpretrain'
    ),
    'segmentor': whole,
    'segmentor in crops': in_crops,
    'one-stage': of_mmdetection('atss/atss_r50_fpn_1x_coco.py'),
    'two-stage': small_detector,
    'RPN': of_mmdetection('rpn/rpn_r50_fpn_1x_coco.py'),
}


def built(config):
    if config.default_scope == 'mmseg':
        pytest.importorskip('mmseg')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    model.eval()
    return model


def predictions(model, images):
    """Return the tensors that a network predicts."""
    with torch.no_grad():
        samples = model(images, data_samples(images) if is_detector(model) else None, mode='predict')
    found = []
    for sample in samples:
        if is_detector(model):
            found += [sample.pred_instances.scores, sample.pred_instances.bboxes]
        elif hasattr(sample, 'pred_score'):
            found.append(sample.pred_score)
        else:
            found.append(sample.seg_logits.data)
    return found


@pytest.mark.parametrize('name', NETWORKS)
def test_the_graph_decides_what_the_network_predicts(name, tmp_path):
    model = built(NETWORKS[name]())
    images = torch.randn(2, 3, 96, 128)
    write_graph(model, tmp_path / 'a.pth', tmp_path / 'a.onnx', (64, 64))
    expected = predictions(model, images)
    methods = {module: dict(vars(module)) for module in model.modules()}
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.startswith('roi_head'):
            parameter.data.mul_(0.5).add_(0.01)  # the exported part is not what the network itself has now
    with computed_by(model, Graph(tmp_path / 'a.onnx')):
        found = predictions(model, images)
    assert len(found) == len(expected) > 0
    for tensor, reference in zip(found, expected, strict=True):
        assert reference.numel() > 0
        # The bound of the export, 1e-4, grows when boxes are decoded and classes are compared.
        torch.testing.assert_close(tensor, reference, atol=1e-3, rtol=1e-3)
    assert {module: dict(vars(module)).keys() for module in model.modules()} == {
        module: names.keys() for module, names in methods.items()
    }
    assert not torch.allclose(predictions(model, images)[0][:5], expected[0][:5], atol=1e-3)


def test_a_graph_for_one_image_computes_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, '_DYNAMIC', ((),))
    model = built(classifying())
    write_graph(model, tmp_path / 'a.pth', tmp_path / 'a.onnx', (64, 64))
    graph = Graph(tmp_path / 'a.onnx')
    assert graph.size == [64, 64]
    images = torch.randn(3, 3, 64, 64)
    assert [len(batch) for batch in graph.batches(images)] == [1, 1, 1]
    with torch.no_grad():
        torch.testing.assert_close(graph.run(images)[0], model(images), atol=1e-4, rtol=1e-4)


def test_a_network_that_uses_a_part_of_its_outputs_is_refused(tmp_path):
    model = built(of_mmdetection('detr/detr_r18_8xb2-500e_coco.py')())
    write_graph(model, tmp_path / 'a.pth', tmp_path / 'a.onnx', (64, 64))
    with (
        pytest.raises(InputError, match='DETR does not predict from the exported outputs alone'),
        computed_by(model, Graph(tmp_path / 'a.onnx')),
    ):
        pass


def test_a_graph_of_another_network_is_refused(tmp_path):
    model = built(classifying())
    write_graph(model, tmp_path / 'a.pth', tmp_path / 'a.onnx', (64, 64))
    with (
        pytest.raises(InputError, match=r"the graph has the outputs \['logits'\]; those of the network are"),
        computed_by(built(retinanet(dict(RESNET))), Graph(tmp_path / 'a.onnx')),
    ):
        pass


def test_a_file_with_other_inputs_is_refused(tmp_path):
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in 'xy')
    graph = onnx.helper.make_graph([onnx.helper.make_node('Relu', ['x'], ['y'])], 'relu', [x], [y])
    opsets = [onnx.helper.make_opsetid('', 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets), tmp_path / 'a.onnx')
    with pytest.raises(InputError, match=r"a\.onnx was not exported by mmasr: its inputs are \{'x': \[2, 3"):
        Graph(tmp_path / 'a.onnx')
