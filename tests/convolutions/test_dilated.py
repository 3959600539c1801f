"""DilatedReparam, compared with its formula, and the depthwise convolution that it merges into."""

import pytest
import torch
from branch_checks import assert_computes
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

import mmasr
from mmasr.convolutions.dilated import SMALL_KERNELS, DilatedReparam
from mmasr.errors import InputError

#: Size of the large kernel -> sizes and dilations of the small ones, as in UniRepLKNet's code.
PAPER = {
    5: ([3, 3], [1, 2]),
    7: ([5, 3, 3], [1, 2, 3]),
    9: ([5, 5, 3, 3], [1, 2, 3, 4]),
    11: ([5, 5, 3, 3, 3], [1, 2, 3, 4, 5]),
    13: ([5, 7, 3, 3, 3], [1, 2, 3, 4, 5]),
    15: ([5, 7, 3, 3, 3], [1, 2, 3, 5, 7]),
    17: ([5, 9, 3, 3, 3], [1, 2, 4, 5, 7]),
    21: ([5, 9, 3, 3, 3], [1, 2, 4, 5, 7]),
}


def made(size, channels=4, **options):
    return DilatedReparam(channels, channels, size, padding=size // 2, groups=channels, **options)


@pytest.mark.parametrize('stride', [1, 2, (2, 1)])
@pytest.mark.parametrize('size', [5, 7, 13, 21])
def test_outputs_gradients_and_merged_layer_are_those_of_the_formula(size, stride):
    def formula(t, x):
        window = {'stride': stride, 'groups': 4}
        y = t.normalized('origin.norm', conv2d(x, t['origin.conv.weight'], padding=size // 2, **window))
        for i, (k, r) in enumerate(zip(*PAPER[size], strict=True)):
            # The authors insert zeros into the kernel by a transposed convolution.
            kernel = conv_transpose2d(t[f'small.{i}.conv.weight'], x.new_ones(1, 1, 1, 1), stride=r)
            padded = pad(x, [r * (k - 1) // 2] * 4)
            y = y + t.normalized(f'small.{i}.norm', conv2d(padded, kernel, **window))
        return y

    merged = assert_computes(made(size, stride=stride), formula, torch.randn(2, 4, 11, 14))
    assert merged.kernel_size == (size, size)
    assert merged.groups == 4


@pytest.mark.parametrize('size', PAPER)
def test_small_kernels_are_those_of_the_paper_and_fit(size):
    layer = made(size)
    sizes, dilations = PAPER[size]
    assert [branch.conv.kernel_size[0] for branch in layer.small] == sizes
    assert [branch.conv.dilation[0] for branch in layer.small] == dilations
    assert all(r * (k - 1) + 1 <= size for k, r in zip(sizes, dilations, strict=True))


def test_every_default_is_tested():
    assert set(SMALL_KERNELS) < set(PAPER)


def test_small_kernels_can_be_chosen():
    network = nn.Sequential(nn.Conv2d(4, 4, 9, padding=4, groups=4)).eval()
    spec = {'type': 'DilatedReparam', 'small_kernels': [[3, 4], [1, 1]]}
    mmasr.attach(network, spec)
    x = torch.randn(1, 4, 9, 9)
    assert len(network[0].small) == 2
    assert mmasr.fold(network, verify=x)[0].kernel_size == (9, 9)


def test_default_sites_are_large_depthwise_convolutions():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, padding=3),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 31, 2, padding=15, groups=4),
        nn.Conv2d(4, 4, 7, padding=6, dilation=2, groups=4),
        nn.Conv2d(4, 8, 7, padding=3, groups=4),
    )
    assert DilatedReparam.default_sites(network) == ['2', '3']
    mmasr.attach(network, {'type': 'DilatedReparam'}, sites=['1'])  # 5 x 5 if named
    with pytest.raises(InputError, match='has no depthwise convolution with a kernel of 7 x 7 or more'):
        mmasr.attach(network[4:], {'type': 'DilatedReparam'})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'groups': 1}, 'replaces a depthwise convolution, .* not one of 4 inputs, 4 outputs, groups=1'),
        ({'out_channels': 8}, 'a depthwise convolution, .* not one of 4 inputs, 8 outputs, groups=4'),
        ({'dilation': 2, 'padding': 6}, 'a dilation of 1, not 2'),
        ({'kernel_size': 3, 'padding': 1}, 'a kernel of 5 x 5 or more, not 3 x 3'),
        ({'kernel_size': 8}, 'an odd square kernel'),
        ({'padding': 0}, 'a padding of 3'),
        ({'small_kernels': [(5, 2)]}, r'of at most 7, such as \(3, 2\), not \[\(5, 2\)\]'),
        ({'small_kernels': [(2, 1)]}, 'pairs of an odd size k'),
        ({'small_kernels': [3, 5]}, 'pairs of an odd size k'),
        ({'small_kernels': [('3', 1)]}, 'pairs of an odd size k'),
        ({'small_kernels': [(3, 1.5)]}, 'pairs of an odd size k'),
        ({'small_kernels': 3}, 'pairs of an odd size k'),
    ],
)
def test_other_convolutions_and_small_kernels_are_rejected(options, message):
    shape = {'in_channels': 4, 'out_channels': 4, 'kernel_size': 7, 'padding': 3, 'groups': 4}
    with pytest.raises(InputError, match=rf'^DilatedReparam.*{message}') as caught:
        DilatedReparam(**{**shape, **options})
    assert '\n' not in str(caught.value)
