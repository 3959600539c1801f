"""MobileOne, compared with its formula, the convolution that it merges into, and its default sites."""

import pytest
import torch
from branch_checks import assert_computes
from torch import nn
from torch.nn.functional import conv2d

import mmasr
from mmasr.convolutions.mobileone import MobileOne
from mmasr.errors import InputError

SHAPES = {
    '3 x 3': ((6, 6), {}),
    'one copy': ((6, 6), {'copies': 1}),
    'more outputs': ((6, 8), {'copies': 2}),
    '1 x 1': ((6, 6), {'kernel_size': 1, 'padding': 0}),
    '1 x 1, more outputs, one copy': ((6, 8), {'kernel_size': 1, 'padding': 0, 'copies': 1}),
    '1 x 1, groups, stride': ((6, 6), {'kernel_size': 1, 'padding': 0, 'groups': 2, 'stride': 2}),
    'depthwise': ((6, 6), {'groups': 6}),
    'depthwise, stride': ((6, 6), {'groups': 6, 'stride': 2}),
    'groups, dilation': ((6, 6), {'groups': 3, 'dilation': 2, 'padding': 2, 'copies': 2}),
    '5 x 5, stride': ((6, 8), {'kernel_size': 5, 'padding': 2, 'stride': 2, 'copies': 2}),
}


@pytest.mark.parametrize('name', SHAPES)
def test_outputs_gradients_and_merged_layer_are_those_of_the_formula(name):
    (inputs, outputs), options = SHAPES[name]
    size, copies = options.get('kernel_size', 3), options.get('copies', 4)
    window = {'padding': 1, **{k: v for k, v in options.items() if k not in ('kernel_size', 'copies')}}
    point = {key: value for key, value in options.items() if key in ('stride', 'groups')}

    def formula(t, x):
        y = 0
        for branch in ('origin', 'copies.0', 'copies.1', 'copies.2')[:copies]:
            y = y + t.normalized(f'{branch}.norm', conv2d(x, t[f'{branch}.conv.weight'], **window))
        if size > 1:
            y = y + t.normalized('scale.norm', conv2d(x, t['scale.conv.weight'], **point))
        has_identity = inputs == outputs and 'stride' not in options
        return y + t.normalized('identity.norm', x) if has_identity else y

    layer = MobileOne(inputs, outputs, **options)
    assert_computes(layer, formula, torch.randn(3, inputs, 8, 11))


def test_default_sites_are_all_odd_square_convolutions_that_it_supports():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(4, 4, 3),
    )
    assert MobileOne.default_sites(network) == ['0', '1', '2']
    with pytest.raises(InputError, match='has no convolution that MobileOne supports, with an odd square'):
        mmasr.attach(network[3:], {'type': 'MobileOne'})


@pytest.mark.parametrize('copies', [0, -1, 2.0, '4', None])
def test_a_wrong_number_of_copies_is_rejected(copies):
    with pytest.raises(InputError, match=r'^MobileOne needs at least one convolution, not `copies`='):
        MobileOne(4, 4, copies=copies)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'kernel_size': 2}, 'an odd square kernel'), ({'kernel_size': 1}, 'a padding of 0, not')],
)
def test_other_convolutions_are_rejected(options, message):
    with pytest.raises(InputError, match=rf'^MobileOne .*{message}'):
        MobileOne(4, 8, **options)
