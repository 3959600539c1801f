"""Constants go into the layers before or after a gate, wherever that computes the same."""

import re

import pytest
import torch
from helpers import randomize
from torch import nn

from mmasr.stripes.gates import Gate, Switch
from mmasr.stripes.placement import find_placements, placed

C = 8


def gate(v=None, dim=-3):
    switch = Switch(dim)
    switch.v = torch.rand(C) + 0.5 if v is None else v
    return Gate('gate', 'Switch', switch, 'gate')


def searched(network, found, x):
    network.eval()
    return find_placements(network, [found], lambda: network(x))


def check(network, found, x, placement):
    """Check the network without the gate against the multiplied map."""
    with torch.no_grad():
        expected = network(x)
        for name in placement.channels:
            layer = network.get_submodule(name)
            for part, tensor in placed(layer, placement, name, found.switch.v).items():
                target = layer.get_parameter(part) if part != 'running_mean' else layer.running_mean
                assert tensor.shape == target.shape
                target.copy_(tensor)
        found.switch.v = torch.ones(C)
        # A few roundings of float32.
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


AFTER = {
    '1 x 1': lambda: (nn.Conv2d(C, 4, 1),),
    '3 x 3, stride, dilation': lambda: (nn.Conv2d(C, 4, 3, stride=2, padding=2, dilation=2),),
    'reflected': lambda: (nn.Conv2d(C, 4, 3, padding=1, padding_mode='reflect'),),
    'padded with zeros': lambda: (nn.ZeroPad2d(2), nn.Conv2d(C, 4, 3)),
    'groups': lambda: (nn.Conv2d(C, 12, 3, padding=1, groups=4),),
    'depthwise': lambda: (nn.Conv2d(C, 2 * C, 3, padding=1, groups=C),),
    'transposed': lambda: (nn.ConvTranspose2d(C, 4, 3, stride=2),),
    'transposed, groups': lambda: (nn.ConvTranspose2d(C, 12, 3, groups=2),),
    'linear': lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 4)),
    'linear of all positions': lambda: (nn.Flatten(), nn.Linear(C * 36, 4)),
    'activations': lambda: (nn.ReLU(True), nn.LeakyReLU(), nn.Conv2d(C, 4, 1)),
    'pools': lambda: (nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.Conv2d(C, 4, 1)),
    'identities': lambda: (nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.Conv2d(C, 4, 1)),
    'BatchNorm': lambda: (nn.BatchNorm2d(C), nn.Hardswish(), nn.Conv2d(C, 4, 1)),
}


@pytest.mark.parametrize('name', AFTER)
def test_constants_go_into_the_layer_after(name):
    found, layers = gate(), AFTER[name]()
    network = nn.Sequential(
        randomize(nn.Conv2d(3, C, 1)), nn.Hardswish(), found.switch, *map(randomize, layers)
    )
    x = torch.randn(2, 3, 6, 6)
    placements, reasons = searched(network, found, x)
    assert not reasons
    assert not placements['gate'].backward
    assert placements['gate'].positive == (name in ('activations', 'pools'))
    check(network, found, x, placements['gate'])


BEFORE = {
    'convolution': lambda: (nn.Conv2d(3, C, 3),),
    'groups': lambda: (nn.Conv2d(3, 4, 1), nn.Conv2d(4, C, 3, groups=2)),
    'BatchNorm': lambda: (nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)),
    'GroupNorm': lambda: (nn.Conv2d(3, C, 3), nn.GroupNorm(2, C)),
    'activations': lambda: (
        nn.Conv2d(3, C, 3),
        nn.BatchNorm2d(C),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Dropout(),
    ),
    'transposed': lambda: (nn.ConvTranspose2d(3, C, 3),),
}


@pytest.mark.parametrize('name', BEFORE)
def test_constants_go_into_the_layer_before(name):
    found = gate()
    network = nn.Sequential(*map(randomize, BEFORE[name]()), found.switch, nn.Softmax(1))
    x = torch.randn(2, 3, 6, 6)
    placements, reasons = searched(network, found, x)
    assert not reasons
    assert placements['gate'].backward
    check(network, found, x, placements['gate'])


@pytest.mark.parametrize('zeros', [slice(1), slice(None)], ids=['one', 'all'])
def test_a_constant_of_zero_goes_into_a_batch_norm(zeros):
    v = torch.randn(C)
    v[zeros] = 0
    found = gate(v)
    network = nn.Sequential(nn.Hardswish(), found.switch, randomize(nn.BatchNorm2d(C)))
    x = torch.randn(2, C, 6, 6)
    check(network, found, x, searched(network, found, x)[0]['gate'])


class Two(nn.Module):
    """Two layers read the product."""

    def __init__(self, switch):
        super().__init__()
        self.act, self.switch, self.a, self.b = (
            nn.Hardswish(),
            switch,
            nn.Conv2d(C, 4, 1),
            nn.Conv2d(C, 4, 3, padding=1),
        )

    def forward(self, x):
        x = self.switch(self.act(x))
        return self.a(x) + self.b(x)


def test_constants_go_into_all_layers_that_read_the_product():
    found = gate()
    network = Two(found.switch)
    x = torch.randn(2, C, 6, 6)
    placements, _ = searched(network, found, x)
    assert list(placements['gate'].channels) == ['a', 'b']
    check(network, found, x, placements['gate'])


class Residual(Two):
    def forward(self, x):
        y = self.switch(self.act(x))
        return y + self.b(self.a(y).repeat(1, 2, 1, 1)).repeat(1, 2, 1, 1)


class Returned(Two):
    def forward(self, x):
        y = self.switch(self.act(x))
        return y, self.a(y)


class Again(Two):
    def forward(self, x):
        return self.a(self.switch(self.act(x))) + self.a(x)


class Tied(Two):
    def __init__(self, switch):
        super().__init__(switch)
        self.b = nn.Conv2d(C, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.a(self.switch(self.act(x))) + self.b(x)


class Averaged(Two):
    def forward(self, x):
        return self.a(self.switch(self.act(x)).mean(1, keepdim=True).expand(-1, C, -1, -1))


class Padded(Two):
    def forward(self, x):
        return self.a(nn.functional.pad(self.switch(self.act(x)), [1] * 4, value=1.0))


class Normalized(Two):
    def __init__(self, switch):
        super().__init__(switch)
        self.a = nn.BatchNorm2d(C, track_running_stats=False)

    def forward(self, x):
        return self.a(self.switch(self.act(x)))


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [
        (Residual, 'add in the network reads its output|add in the network does not pass a scale'),
        (Returned, 'the network returns its output'),
        (Again, 'a runs in other places too'),
        (Tied, 'a shares its weight'),
        (Averaged, 'mean in the network does not pass a scale'),
        (Padded, 'pad in the network does not pass a scale'),
        (Normalized, 'batch_norm in a normalizes the scale away'),
    ],
)
def test_there_is_no_placement_that_would_change_something_else(kind, reason):
    found = gate()
    placements, reasons = searched(kind(found.switch), found, torch.randn(2, C, 6, 6))
    assert not placements
    assert re.search(
        f'before it, hardswish in act does not pass a scale; after it, ({reason})', reasons['gate']
    )


def test_negative_constants_do_not_pass_an_activation():
    found = gate(torch.linspace(-1, 1, C))
    x = torch.randn(2, 3, 6, 6)
    layers = nn.Conv2d(3, C, 1), nn.ReLU(), found.switch
    placements, reasons = searched(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(C, 4, 1)), found, x)
    assert not placements
    assert reasons['gate'].count('negative constants do not pass an activation or maximum') == 2
    network = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Conv2d(C, 4, 1))
    check(network, found, x, searched(network, found, x)[0]['gate'])


def test_a_layer_before_that_also_feeds_something_else_is_not_scaled():
    class Skip(nn.Module):
        def __init__(self, switch):
            super().__init__()
            self.conv, self.switch = nn.Conv2d(C, C, 1), switch

        def forward(self, x):
            x = self.conv(x)
            return x + self.switch(x)

    found = gate()
    placements, reasons = searched(Skip(found.switch), found, torch.randn(2, C, 6, 6))
    assert not placements
    assert reasons['gate'].startswith('before it, its input is read by something else; after it, add')
