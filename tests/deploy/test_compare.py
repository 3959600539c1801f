"""Networks run on the same images in every comparison, and return raw outputs."""

import io

import pytest
import torch
from helpers import classifier, small_detector
from mmdet.models.backbones import CSPDarknet
from rich.console import Console
from torch import nn

import mmasr
from mmasr.core.differences import Difference
from mmasr.deploy.compare import (
    ALL_IMAGES,
    IMAGES,
    data_samples,
    differences_table,
    images_for,
    input_channels,
    is_detector,
    network_outputs,
)
from mmasr.errors import InputError
from mmasr.openmmlab.building import build_model

BACKBONE = {
    'type': 'mmdet.ResNet',
    'depth': 18,
    'base_channels': 8,
    'num_stages': 1,
    'strides': (1,),
    'dilations': (1,),
    'out_indices': (0,),
}


@pytest.fixture(scope='module')
def network():
    return build_model(classifier(BACKBONE, 8))


@pytest.fixture(scope='module')
def detector():
    return build_model(small_detector())


def test_only_kernels_that_depend_on_the_input_need_several_kinds_of_images():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    for kind, expected in (('OREPA', (IMAGES,)), ('DBB', (IMAGES,)), ('XVolution', ALL_IMAGES)):
        network = nn.Sequential(mmasr.attach(nn.Sequential(layer), {'type': kind}, sites=['0']))
        assert images_for(network) == expected
        mmasr.fold(network)


def test_a_network_runs_in_eval_mode_on_the_same_images_every_time(network):
    network.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = network_outputs(network), network_outputs(network)
    assert not network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert first.keys() == second.keys() == {'output'}
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert len(tensor) == 3
        assert tensor.std() > 0


def test_several_kinds_of_images_have_their_own_outputs(network):
    outputs = network_outputs(network, ((64, 1.0), (96, 0.5)))
    (name,) = network_outputs(network, ((64, 1.0),))
    assert list(outputs) == [f'{name}, 64 px, × 1', f'{name}, 96 px, × 0.5']
    assert torch.equal(outputs[f'{name}, 64 px, × 1'], network_outputs(network, ((64, 1.0),))[name])


def test_the_outputs_of_a_two_stage_detector_are_raw(detector):
    outputs = network_outputs(detector)
    assert {name.partition('.')[0] for name in outputs} == {'features', 'rpn_head', 'roi_head'}
    assert outputs['features.0'].shape == (3, 48, 56, 56)
    assert len(outputs['roi_head.0']) == 48  # 16 proposals for each of three images


def test_detectors_are_recognized(detector, network):
    assert is_detector(detector)
    assert not is_detector(network)
    assert not is_detector(nn.Linear(1, 1))


def test_the_number_of_input_channels_is_that_of_the_first_convolution():
    assert input_channels(nn.Sequential(nn.Conv2d(5, 2, 1), nn.Conv2d(2, 2, 1))) == 5
    assert input_channels(CSPDarknet(widen_factor=0.125)) == 3  # its Focus makes 12 channels of 3
    with pytest.raises(InputError, match='Sequential has no convolution'):
        input_channels(nn.Sequential(nn.Linear(1, 1)))


def test_data_samples_have_the_size_of_the_images_and_no_boxes():
    samples = data_samples(torch.zeros(2, 3, 32, 64))
    assert len(samples) == 2
    for sample in samples:
        assert (
            sample.img_shape == sample.ori_shape == sample.pad_shape == sample.batch_input_shape == (32, 64)
        )
        assert len(sample.gt_instances) == 0


def test_the_table_shows_each_difference_and_the_bound():
    console = Console(width=120, file=io.StringIO())
    console.print(differences_table([Difference('logits\x1b', 0.5, 0.00124)], 1e-4))
    text = console.file.getvalue()
    for part in ('relative (bound 1e-04)', 'logits\\x1b', '5.0e-01', '1.2e-03'):
        assert part in text
