"""RepVGG and QARepVGG, compared with their formulas, and the convolution that they merge into."""

import pytest
import torch
from branch_checks import assert_computes
from torch import nn
from torch.nn.functional import conv2d, pad

from mmasr.convolutions.repvgg import QARepVGG, RepVGG
from mmasr.errors import InputError

#: Name -> arguments, and whether the identity is a branch.
SHAPES = {
    '3 x 3': ((6, 6), {}, True),
    'more outputs': ((6, 8), {}, False),
    'stride': ((6, 6), {'stride': 2}, False),
    'stride in one direction': ((6, 6), {'stride': (1, 2)}, False),
    'groups': ((6, 6), {'groups': 3}, True),
    'depthwise': ((6, 6), {'groups': 6}, True),
    'depthwise, stride': ((6, 6), {'groups': 6, 'stride': 2}, False),
    'dilation': ((6, 6), {'dilation': 2, 'padding': 2}, True),
    '5 x 5, dilation, stride': ((6, 8), {'kernel_size': 5, 'dilation': 2, 'padding': 4, 'stride': 2}, False),
    '7 x 7': ((6, 6), {'kernel_size': 7, 'padding': 3}, True),
}


def window(options):
    return {'padding': 1, **{key: value for key, value in options.items() if key != 'kernel_size'}}


def point(options):
    return {key: value for key, value in options.items() if key in ('stride', 'groups')}


def repvgg(options, has_identity):
    def formula(t, x):
        y = t.normalized('origin.norm', conv2d(x, t['origin.conv.weight'], **window(options)))
        y = y + t.normalized('point.norm', conv2d(x, t['point.conv.weight'], **point(options)))
        return y + t.normalized('identity.norm', x) if has_identity else y

    return formula


def qarepvgg(options, has_identity):
    def formula(t, x):
        y = t.normalized('origin.norm', conv2d(x, t['origin.conv.weight'], **window(options)))
        y = y + conv2d(x, t['point.weight'], **point(options))
        return t.normalized('norm', y + x if has_identity else y)

    return formula


@pytest.mark.parametrize(('kind', 'formula'), [(RepVGG, repvgg), (QARepVGG, qarepvgg)])
@pytest.mark.parametrize('name', SHAPES)
def test_outputs_gradients_and_merged_layer_are_those_of_the_formula(kind, formula, name):
    shape, options, has_identity = SHAPES[name]
    layer = kind(*shape, **options)
    assert layer.has_identity == has_identity
    merged = assert_computes(layer, formula(options, has_identity), torch.randn(3, 6, 9, 12))
    assert merged.kernel_size == (options.get('kernel_size', 3),) * 2


def test_merged_kernel_of_repvgg_is_the_sum_of_the_paper():
    """γ₃ / σ₃ W₃ + γ₁ / σ₁ W₁ + γ₀ / σ₀ I, the latter two at the center (section 3.3 of the paper)."""
    layer = RepVGG(4, 4).double().eval()
    for norm in (layer.origin.norm, layer.point.norm, layer.identity.norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_var.uniform_(0.5, 1.5)
    factors = [
        (branch.norm.weight / (branch.norm.running_var + branch.norm.eps).sqrt()).view(4, 1, 1, 1)
        for branch in (layer.origin, layer.point, layer.identity)
    ]
    one = torch.eye(4, dtype=torch.double)[:, :, None, None]
    expected = factors[0] * layer.origin.conv.weight
    expected = expected + pad(factors[1] * layer.point.conv.weight + factors[2] * one, [1] * 4)
    torch.testing.assert_close(layer.to_single_layer().weight, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kind', [RepVGG, QARepVGG])
@torch.no_grad()
def test_branches_that_nearly_cancel_merge_without_loss(kind):
    """A depthwise 1 x 1 kernel may start near -1; in float32 the sum with the identity would lose digits."""
    layer = kind(64, 64, groups=64, init_identity=True).eval()
    layer.origin.conv.weight.mul_(1e-3)
    if kind is RepVGG:
        layer.point.conv.weight.uniform_(-1, -0.99)
        for norm in (layer.point.norm, layer.identity.norm):
            nn.init.ones_(norm.weight)
    else:
        layer.point.weight.uniform_(-1, -0.99)
    found = layer.to_single_layer().weight
    expected = layer.double().to_single_layer().weight
    torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=0)


def test_a_silent_channel_has_a_large_weight_in_repvgg_and_not_in_qarepvgg():
    """The reason for QARepVGG: the BatchNorm of the identity divides by the deviation of its channel."""
    x = torch.randn(8, 4, 16, 16)
    x[:, 2] *= 1e-2
    largest = {}
    for kind in (RepVGG, QARepVGG):
        torch.manual_seed(0)
        layer = kind(4, 4)
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        layer(x)
        weight = layer.to_single_layer().weight.abs().amax((1, 2, 3))
        largest[kind] = (weight.max() / weight.median()).item()
    assert largest[RepVGG] > 20
    assert largest[QARepVGG] < 5


@pytest.mark.parametrize('has_identity', [True, False])
def test_the_1x1_kernel_of_qarepvgg_cancels_the_identity_at_the_start(has_identity):
    layer = QARepVGG(6, 6 if has_identity else 8, groups=2, init_identity=True)
    kernel = layer.point.weight.detach()
    negative = -torch.eye(3).repeat(2, 1)[:, :, None, None]
    assert torch.equal(kernel, negative if has_identity else torch.zeros(8, 3, 1, 1))


@pytest.mark.parametrize('kind', [RepVGG, QARepVGG])
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kernel_size': 4}, 'replaces a convolution with an odd square kernel, not with a kernel of 4'),
        ({'kernel_size': (3, 5)}, r'an odd square kernel, not with a kernel of \(3, 5\)'),
        ({'kernel_size': 1, 'padding': 0}, 'with a kernel of 3 x 3 or more, not 1 x 1'),
        ({'padding': 0}, 'needs one dilation for both directions and a padding of 1, not'),
        ({'dilation': (1, 2)}, 'needs one dilation for both directions'),
    ],
)
def test_other_convolutions_are_rejected(kind, options, message):
    with pytest.raises(InputError, match=rf'^{kind.__name__} .*{message}') as caught:
        kind(4, 8, **options)
    assert '\n' not in str(caught.value)
