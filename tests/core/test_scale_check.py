"""Tests of the check that the output of a custom layer scales with its parameters."""

import copy

import mmcv.ops
import pytest
import timm.layers
import torch
import torchvision
from helpers import randomize
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmcv.cnn.bricks.wrappers import Conv2d, ConvTranspose2d
from mmdet.models.layers.normed_predictor import NormedConv2d, NormedLinear
from mmpretrain.models.utils import LayerNorm2d
from timm.layers.std_conv import ScaledStdConv2d, StdConv2dSame
from torch import nn
from torch.nn.functional import batch_norm

import mmasr
from mmasr.core.host import Host
from mmasr.core.scale_check import INPUTS, check_output_scales
from mmasr.errors import InputError

C = 8
SE = {'type': 'SE'}


class WeightStandardizedConv2d(nn.Conv2d):
    """Like the convolution of BiT in Hugging Face transformers."""

    def forward(self, x):
        weight = batch_norm(self.weight.reshape(1, C, -1), None, None, training=True).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias)


class WithLoRA(nn.Linear):
    """Adds a second path to the output, which starts at 0."""

    def __init__(self):
        super().__init__(6, C)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, C, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def with_parametrized_bias():
    layer = nn.Linear(6, C)
    nn.utils.parametrize.register_parametrization(layer, 'bias', nn.Identity())
    return layer


REJECTED = {
    'timm StdConv2d': lambda: StdConv2dSame(6, C, 3),
    'timm ScaledStdConv2d': lambda: ScaledStdConv2d(6, C, 3),
    'timm ScaledStdConv2d, all zeros': lambda: zero(ScaledStdConv2d(6, C, 3)),
    'mmcv ConvWS2d': lambda: ConvWS2d(6, C, 3),
    'mmcv ConvAWS2d': lambda: ConvAWS2d(6, C, 3),
    'mmcv SAConv2d': lambda: mmcv.ops.SAConv2d(6, C, 3, padding=1),
    'mmdet NormedLinear': lambda: NormedLinear(6, C),
    'mmdet NormedConv2d': lambda: NormedConv2d(6, C, 3),
    'Hugging Face': lambda: WeightStandardizedConv2d(6, C, 3),
    'LoRA': WithLoRA,
    'a parametrized bias': with_parametrized_bias,
}


def zero(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize('kind', REJECTED)
def test_a_layer_whose_output_does_not_scale_is_rejected_by_name(kind):
    model = nn.Sequential(REJECTED[kind]())
    with pytest.raises(
        InputError, match=r"^0 \(\w+\) can't carry an ASR: its output does not scale with its weight"
    ) as error:
        mmasr.attach(model, SE, sites=['0'])
    assert '\n' not in str(error.value)
    assert not isinstance(model[0], Host)


class FixedSize(nn.Conv2d):
    """Accepts only images of 32 x 32 pixels."""

    def forward(self, x):
        assert x.shape[2:] == (32, 32), f'I take 32 x 32 pixels,\nnot {x.shape}'
        return super().forward(x)


# name -> layer, shape of its input, channel dimension of its output
ACCEPTED = {
    'timm BatchNormAct2d': (lambda: timm.layers.BatchNormAct2d(C), (2, C, 5, 5), 1),
    'timm BatchNormAct2d, GELU': (lambda: timm.layers.BatchNormAct2d(C, act_layer=nn.GELU), (2, C, 5, 5), 1),
    'timm GroupNormAct': (lambda: timm.layers.GroupNormAct(C, 2), (2, C, 5, 5), 1),
    'timm SyncBatchNormAct': (lambda: timm.layers.SyncBatchNormAct(C), (2, C, 5, 5), 1),
    'timm LayerNorm2d': (lambda: timm.layers.LayerNorm2d(C), (2, C, 5, 5), 1),
    'timm LayerNorm': (lambda: timm.layers.LayerNorm(C), (2, 5, C), 2),
    'timm Conv2dSame': (lambda: timm.layers.Conv2dSame(6, C, 3, stride=2), (2, 6, 5, 5), 1),
    'torchvision LayerNorm2d': (lambda: torchvision.models.convnext.LayerNorm2d(C), (2, C, 5, 5), 1),
    'mmpretrain LayerNorm2d': (lambda: LayerNorm2d(C), (2, C, 5, 5), 1),
    'mmcv Conv2d': (lambda: Conv2d(6, C, 31, padding=15, padding_mode='reflect'), (2, 6, 20, 20), 1),
    'mmcv ConvTranspose2d': (lambda: ConvTranspose2d(6, C, 3), (2, 6, 5, 5), 1),
}


@pytest.mark.parametrize('kind', ACCEPTED)
def test_a_layer_of_another_library_matches_the_formula(kind):
    make, shape, dim = ACCEPTED[kind]
    stock = randomize(make()).double().eval()
    host = randomize(mmasr.attach(copy.deepcopy(stock), SE, sites=''))
    host.load_state_dict(stock.state_dict(), strict=False)
    x = torch.randn(shape, dtype=torch.double)
    act = getattr(stock, 'act', nn.Identity())
    stock.act = nn.Identity()
    out = stock(x)
    expected = act(
        out * host.asr.scale().view([-1 if i == dim else 1 for i in range(out.dim())])
    )  # before the activation
    torch.testing.assert_close(host(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mmasr.fold(host)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('grad', [True, False])
def test_the_check_changes_nothing(grad):
    layer = timm.layers.BatchNormAct2d(C, drop_layer=nn.Dropout).train()
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args))
    layer.weight.grad = torch.ones(C)
    before, numbers = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        check_output_scales('bn', layer)
        assert torch.is_grad_enabled() == grad
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert layer.training
    assert layer.drop.training
    assert isinstance(layer.act, nn.ReLU)
    assert layer.weight.grad.eq(1).all()
    assert seen == []


def test_objects_that_a_layer_refers_to_are_not_copied(process_group):
    """A process group cannot be copied."""
    world = torch.distributed.group.WORLD
    for layer in (
        timm.layers.SyncBatchNormAct(C, process_group=world),
        mmcv.ops.SyncBatchNorm(C, group=world),
    ):
        assert isinstance(mmasr.attach(layer, SE, sites=''), Host)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.double])
def test_layers_in_half_and_double_precision_are_checked_too(dtype):
    assert isinstance(mmasr.attach(timm.layers.Conv2dSame(6, C, 3).to(dtype), SE, sites=''), Host)
    with pytest.raises(InputError, match='does not scale'):
        mmasr.attach(StdConv2dSame(6, C, 3).to(dtype), SE, sites='')


def test_a_layer_on_the_meta_device_is_checked_on_the_cpu():
    with torch.device('meta'):
        host = mmasr.attach(timm.layers.BatchNormAct2d(C), SE, sites='')
        with pytest.raises(InputError, match='does not scale'):
            mmasr.attach(StdConv2dSame(6, C, 3), SE, sites='')
    assert host.weight.is_meta


def test_a_layer_that_fails_in_the_test_run_is_rejected_until_its_input_is_described(monkeypatch):
    entry = f'{FixedSize.__module__}.FixedSize'
    message = (
        r'scales failed \(I take 32 x 32 pixels,\); describe its input in '
        rf"mmasr\.core\.scale_check\.INPUTS\['{entry}'\]"
    )
    with pytest.raises(InputError, match=message) as error:
        mmasr.attach(FixedSize(6, C, 3), SE, sites='')
    assert '\n' not in str(error.value)
    monkeypatch.setitem(INPUTS, entry, lambda layer: ((torch.randn(1, 6, 32, 32),), 1))
    assert isinstance(mmasr.attach(FixedSize(6, C, 3), SE, sites=''), Host)
