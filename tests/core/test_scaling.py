"""Tests of the product of a layer's parameters with a scale, and of the layers that are rejected."""

import mmcv.ops
import pytest
import torch
from helpers import randomize
from torch import nn

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.core.host import Host
from mmasr.core.scaling import batch_key, is_batch_norm, output_channels, prepare_scaled, scaled
from mmasr.errors import InputError

C = 8
V = torch.linspace(0.5, 2, C)


def test_a_convolution_is_scaled_along_its_output_channels():
    conv = nn.Conv2d(6, C, 3, groups=2)
    found = scaled(conv, V)
    assert found.keys() == {'weight', 'bias'}
    torch.testing.assert_close(found['weight'], torch.einsum('oihw,o->oihw', conv.weight, V))
    torch.testing.assert_close(found['bias'], conv.bias * V)


def test_a_transposed_convolution_with_groups_is_scaled_along_the_outputs_of_each_group():
    conv = nn.ConvTranspose2d(6, C, 3, groups=2)
    weight = torch.cat(
        [torch.einsum('iohw,o->iohw', *pair) for pair in zip(conv.weight.chunk(2), V.chunk(2), strict=True)]
    )
    torch.testing.assert_close(scaled(conv, V)['weight'], weight)


def test_missing_parameters_are_left_out():
    assert scaled(nn.LayerNorm(C, bias=False), V).keys() == {'weight'}
    assert scaled(nn.Linear(3, C, bias=False), V).keys() == {'weight'}


def test_branches_are_scaled_at_the_last_layer_of_each():
    acnet = randomize(ACNet(6, C))
    found = scaled(acnet, V)
    assert found.keys() == {f'{branch}.{name}' for branch in acnet.branch_ends for name in ('weight', 'bias')}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, acnet.get_parameter(name) * V)


def test_products_have_the_dtype_of_the_parameters():
    assert scaled(nn.Linear(3, C).half(), V)['weight'].dtype == torch.float16


LIKE_LAYERS = {
    'normalizations of several widths': [nn.BatchNorm2d(C), nn.BatchNorm2d(3), nn.GroupNorm(1, C)],
    'convolutions': [nn.Conv2d(6, C, 3), nn.Conv2d(2, 4, 1)],
    'linear layers without bias': [nn.Linear(3, C, bias=False), nn.Linear(5, 4, bias=False)],
    'branches': [ACNet(6, C), ACNet(4, 4)],
}


@pytest.mark.parametrize('layers', LIKE_LAYERS.values(), ids=LIKE_LAYERS.keys())
def test_several_layers_are_scaled_as_each_alone(layers):
    for layer in layers:
        randomize(layer)
    assert len({batch_key(layer) for layer in layers}) == 1
    rows = [torch.randn(output_channels(layer)) for layer in layers]
    expected = [scaled(layer, row) for layer, row in zip(layers, rows, strict=True)]
    torch.testing.assert_close(prepare_scaled(layers)(torch.cat(rows)), expected)


def test_layers_with_different_parameters_have_different_keys():
    layers = [
        nn.BatchNorm2d(C),
        nn.BatchNorm2d(C).double(),
        nn.LayerNorm(C, bias=False),
        nn.Conv2d(6, C, 3),
        nn.Conv2d(6, C, 3, bias=False),
        nn.BatchNorm2d(C, device='meta'),
    ]
    assert len({batch_key(layer) for layer in layers}) == len(layers)


@pytest.mark.parametrize(
    ('layer', 'channels'),
    [
        (nn.InstanceNorm2d(C, affine=True), C),
        (nn.GroupNorm(2, C), C),
        (nn.LayerNorm((5, C)), C),
        (nn.ConvTranspose2d(6, C, 3), C),
        (nn.Linear(6, C), C),
        (nn.MultiheadAttention(C, 2), C),
        (ACNet(6, C), C),
        (nn.ReLU(), None),
        (nn.Sequential(nn.Linear(6, C)), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_output_channels(layer, channels):
    assert output_channels(layer) == channels


def test_the_sync_batch_norm_of_mmcv_is_a_batch_norm(process_group):
    assert is_batch_norm(mmcv.ops.SyncBatchNorm(C))
    assert is_batch_norm(nn.InstanceNorm1d(C))
    assert not is_batch_norm(nn.GroupNorm(2, C))


@pytest.mark.parametrize(
    'make',
    [
        lambda: nn.InstanceNorm2d(C),
        lambda: nn.BatchNorm2d(C, affine=False),
        lambda: nn.LayerNorm(C, elementwise_affine=False),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, C, 3)),
    ],
)
def test_a_layer_with_nothing_to_scale_is_rejected_by_name(make):
    model = nn.Sequential(nn.Conv2d(3, C, 1), make())
    with pytest.raises(InputError, match=r'^1 \(.*has no weight of its own'):
        mmasr.attach(model, {'type': 'SE'}, sites=['0', '1'])
    assert not any(isinstance(m, Host) for m in model.modules())


@pytest.mark.parametrize('norm', [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_a_layer_whose_weight_is_computed_by_a_hook_is_rejected(norm):
    with pytest.raises(InputError, match='has no weight of its own'):
        mmasr.attach(norm(nn.Conv2d(3, C, 3)), {'type': 'SE'}, sites='')


def test_the_projection_inside_multi_head_attention_is_rejected():
    message = r'out_proj is read by its MultiheadAttention and never called; name the MultiheadAttention'
    with pytest.raises(InputError, match=message):
        mmasr.attach(nn.MultiheadAttention(C, 2), {'type': 'SE'}, sites=['out_proj'])


def test_a_lazy_layer_is_rejected_until_it_has_a_weight():
    """When it gets its weight it takes its stock class, so its ASR would have no effect."""
    with pytest.raises(InputError, match=r'^0 \(LazyConv2d\) has no weight yet; run the network once'):
        mmasr.attach(nn.Sequential(nn.LazyConv2d(C, 3)), {'type': 'SE'}, sites=['0'])
