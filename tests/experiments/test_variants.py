import pytest
import torch
import torchvision
from helpers import SHAPES_CONFIG
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import RepVGG
from torch import nn

from mmasr.attention import ATTENTIONS
from mmasr.deploy.compare import tensors
from mmasr.deploy.deployed_config import deployed_config
from mmasr.experiments.benchmark.variants import variants
from mmasr.experiments.benchmark.workload import annotated_images


def test_every_variant_computes_the_same_at_the_start():
    plain = torchvision.models.resnet18().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        for name, model in variants(plain, list(ATTENTIONS), [1, 3]).items():
            torch.testing.assert_close(model.eval()(x), expected, msg=name, rtol=1e-4, atol=1e-5)


def small_vgg():
    """Without the hundred million parameters after the convolutions."""
    network = torchvision.models.vgg11_bn(init_weights=False)
    network.classifier = nn.Linear(25088, 10)
    return network


@pytest.mark.parametrize('make', [small_vgg, torchvision.models.mobilenet_v2, lambda: RepVGG('A0')])
def test_other_families(make):
    plain = make()
    plain.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = list(tensors('', plain(x)))
        for name, model in variants(plain, ['ECA']).items():
            model.eval()
            for (_, found), (_, output) in zip(tensors('', model(x)), expected, strict=True):
                torch.testing.assert_close(found, output, msg=name, rtol=1e-4, atol=1e-5)


def test_deployed_is_the_plain_network_module_by_module():
    plain = torchvision.models.resnet50()
    deployed = variants(plain, ['SE'])['ASR(SE), deployed']
    assert [(name, type(module)) for name, module in deployed.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert deployed.state_dict().keys() == plain.state_dict().keys()


def test_a_network_without_sites_is_refused():
    with pytest.raises(ValueError, match='no site for attention found in VGG'):
        variants(torchvision.models.vgg11(), ['SE'])


def test_a_transformer_has_the_forms_without_a_feature_map():
    plain = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    assert list(variants(plain, ['SE', 'CBAM'])) == ['plain', 'ASR(SE)', 'ASR(SE), deployed']


def test_a_spatial_map_alone_is_refused_for_a_transformer():
    plain = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    with pytest.raises(ValueError, match='VisionTransformer is a transformer, without feature maps, and CBAM needs one'):
        variants(plain, ['CBAM'])


def test_a_detector_predicts_and_has_every_loss():
    init_default_scope('mmdet')
    model = MODELS.build(deployed_config(Config.fromfile(SHAPES_CONFIG)).model)
    work = annotated_images(model, torch.randn(2, 3, 128, 128))
    model.eval()
    with torch.no_grad():
        assert len(work.predict(model)) == 2
    model.train()
    loss = work.loss(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
