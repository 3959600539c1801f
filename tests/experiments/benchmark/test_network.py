"""The plain network of a benchmark."""

import pytest
import torch
import torchvision
from helpers import ROOT
from mmpretrain.models import RepVGG

from mmasr import ASR
from mmasr.core.host import Host
from mmasr.errors import InputError
from mmasr.experiments.benchmark.network import config_model, random_input


def test_a_config_gives_the_training_form_without_asr():
    """A plain RepVGG has branches in training."""
    network = config_model(ROOT / 'configs/cifar100/repvgg_a0_asr_se.py', 'backbone')
    assert not any(isinstance(module, Host | ASR) for module in network.modules())
    assert network.state_dict().keys() == RepVGG('A0', strides=(1, 2, 2, 2)).state_dict().keys()


def test_a_random_input_has_the_shape_that_a_layer_receives():
    network = torchvision.models.resnet18()
    assert random_input(network, 'layer3', torch.randn(2, 3, 64, 96)).shape == (2, 128, 8, 12)
    assert not network.layer3._forward_pre_hooks


@pytest.mark.parametrize('layer', ['layer9', 'layer3.0.downsample.2', 'avgpool.x'])
def test_a_missing_layer_is_rejected(layer):
    with pytest.raises(InputError, match=f"ResNet has no layer '{layer}' that takes one feature map"):
        random_input(torchvision.models.resnet18(), layer, torch.randn(2, 3, 64, 64))
