"""The variants of a network with attention."""

import pytest
import torch
import torchvision
from mmpretrain.models import RepVGG
from torch import nn

from mmasr.attention import ATTENTIONS
from mmasr.deploy.compare import tensors
from mmasr.experiments.benchmark.variants import attention_variants


def test_all_variants_compute_the_same_at_the_start():
    plain = torchvision.models.resnet18().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        for name, model in attention_variants(plain, list(ATTENTIONS), [1, 3]).items():
            torch.testing.assert_close(model.eval()(x), expected, msg=name, rtol=1e-4, atol=1e-5)


def small_vgg():
    """Build VGG11 without the hundred million parameters after the convolutions."""
    network = torchvision.models.vgg11_bn(init_weights=False)
    network.classifier = nn.Linear(25088, 10)
    return network


@pytest.mark.parametrize('make', [small_vgg, torchvision.models.mobilenet_v2, lambda: RepVGG('A0')])
def test_variants_of_other_families_compute_the_same_at_the_start(make):
    plain = make()
    plain.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = list(tensors('', plain(x)))
        for name, model in attention_variants(plain, ['ECA']).items():
            model.eval()
            for (_, found), (_, output) in zip(tensors('', model(x)), expected, strict=True):
                torch.testing.assert_close(found, output, msg=name, rtol=1e-4, atol=1e-5)


def test_the_deployed_variant_is_the_plain_network_module_by_module():
    plain = torchvision.models.resnet50()
    deployed = attention_variants(plain, ['SE'])['ASR(SE), deployed']
    assert [(name, type(module)) for name, module in deployed.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert deployed.state_dict().keys() == plain.state_dict().keys()


def test_a_network_without_sites_is_rejected():
    with pytest.raises(ValueError, match='no site for attention found in VGG'):
        attention_variants(torchvision.models.vgg11(), ['SE'])


def test_a_transformer_has_only_the_forms_without_a_feature_map():
    plain = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    assert list(attention_variants(plain, ['SE', 'CBAM'])) == ['plain', 'ASR(SE)', 'ASR(SE), deployed']


def test_a_transformer_with_spatial_attention_only_is_rejected():
    plain = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    message = 'VisionTransformer is a transformer, which has no feature maps, but CBAM needs one'
    with pytest.raises(ValueError, match=message):
        attention_variants(plain, ['CBAM'])
