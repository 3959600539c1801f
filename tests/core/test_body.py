"""Only convolutions of a feature extractor's body get branches by default."""

import pytest
import timm
import torch
import torchvision
from mmcv.cnn.bricks import ContextBlock, NonLocal2d
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.layers import DyReLU
from mmdet.models.necks.dyhead import DyHeadBlock
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.convolutions.orepa import OREPA
from mmasr.core.body import body_convolutions
from mmasr.core.foldable import find_foldable


class Unknown(nn.Module):
    """A block with attention of an unknown library."""

    class SpatialAttention(nn.Sequential):
        pass

    class ECA(nn.Sequential):
        pass

    class EmbedHead(nn.Sequential):
        pass

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.gate = self.SpatialAttention(nn.Conv2d(2, 1, 7), nn.Sigmoid())
        self.eca = self.ECA(nn.Conv2d(4, 4, 1))


def zero(conv):
    nn.init.zeros_(conv.weight)
    return conv


def prior(conv, value):
    nn.init.constant_(conv.bias, value)
    return conv


@pytest.mark.parametrize(
    ('network', 'expected'),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), Unknown()), ['0', '1.conv']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), zero(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 1)), ['0', '2']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), prior(nn.Conv2d(4, 4, 3), -4.6)), ['0']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), prior(nn.Conv2d(4, 4, 3), 0)), ['0', '1']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), ModulatedDeformConv2dPack(4, 4, 3)), ['0']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, device='meta')), ['0', '1']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), ContextBlock(4, 0.5), NonLocal2d(4), DyReLU(4)), ['0']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), Unknown.EmbedHead(nn.Conv2d(4, 4, 3))), ['0']),
        (nn.Sequential(nn.Conv2d(3, 4, 3), DyHeadBlock(16, 16)), ['0']),
        (nn.Conv2d(3, 4, 3), ['']),
    ],
    ids=[
        *('attention', 'zeros', 'prior', 'bias of zeros', 'offsets', 'no values', 'context', 'a head'),
        *('dynamic head', 'itself'),
    ],
)
def test_the_body_excludes_gates_offsets_and_priors(network, expected):
    assert body_convolutions(network) == expected


def test_the_heads_of_a_detector_are_not_part_of_the_body():
    network = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    names = body_convolutions(network)
    assert {name.split('.')[0] for name in names} == {'backbone'}
    assert any(name.startswith('backbone.fpn') for name in names)


@pytest.mark.parametrize('name', ['seresnet50', 'resnest14d'])
def test_default_sites_are_in_the_body(name):
    network = timm.create_model(name)
    body = body_convolutions(network)
    assert set(OREPA.default_sites(network)) <= set(body)
    assert set(ACNet.default_sites(network)) <= set(body)
    assert not [site for site in body if '.se.' in site]


@pytest.mark.parametrize('kind', ['OREPA', 'DBB', 'ACNet'])
def test_offsets_start_at_zero_with_branches(kind):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ModulatedDeformConv2dPack(4, 4, 3, padding=1))
    mmasr.attach(network, {'type': kind})
    assert len(find_foldable(network).names()) == 1
    assert type(network[1].conv_offset) is nn.Conv2d
    assert not network[1].conv_offset(torch.randn(1, 4, 5, 5)).any()
