"""Attention is found by what it computes, and taken out without a trace."""

import pytest
import timm
import torch
import torchvision
from torch import fx, nn

from mmasr.attention import CBAM, ECA, SE
from mmasr.stripes.gates import find_gates, switched, without_gates
from mmasr.stripes.trace import Trace

C = 8


class Gated(nn.Module):
    """Base class of modules with a gate between two convolutions."""

    def __init__(self):
        super().__init__()
        self.before, self.fc, self.after = nn.Conv2d(3, C, 3), nn.Linear(C, C), nn.Conv2d(C, 4, 1)

    def g(self, x):
        return self.fc(x.mean((2, 3))).sigmoid()

    def forward(self, x):
        x = self.before(x).relu()
        return self.after(self.product(x, self.g(x)[:, :, None, None]))


class Product(Gated):
    def product(self, x, g):
        return x * g


class Reversed(Gated):
    def product(self, x, g):
        return torch.mul(g, x)


class Expanded(Gated):
    def product(self, x, g):
        return x * g.expand_as(x)


class InPlace(Gated):
    def product(self, x, g):
        x *= g
        return x


class Sum(Gated):
    def product(self, x, g):
        return x + x * g


class OneMore(Gated):
    def product(self, x, g):
        return x * (1 + g)


class ChannelsLast(Gated):
    def product(self, x, g):
        return (x.permute(0, 2, 3, 1) * g[:, None, None, :, 0, 0]).permute(0, 3, 1, 2)


class Mul(nn.Module):
    def forward(self, a, b):
        return a * b


class TwoInputs(Gated):
    """Multiplies in a module, as networks do that were converted from ONNX."""

    def __init__(self):
        super().__init__()
        self.mul = Mul()

    def product(self, x, g):
        return self.mul(x, g)


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class TwoInputsSum(TwoInputs):
    def __init__(self):
        super().__init__()
        self.add = Add()

    def product(self, x, g):
        return self.add(self.mul(x, g), x)


class Optional(Gated):
    """Has arguments that decide what it computes."""

    def forward(self, x, mask=None, scale=1.0):
        if mask is not None:
            x = x * mask
        return super().forward(x * scale)

    def product(self, x, g):
        return x * g


class Attention(nn.Module):
    """A class that no library has."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(C, C)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


def sequential(attention):
    return nn.Sequential(nn.Conv2d(3, C, 3), nn.ReLU(), attention, nn.Conv2d(C, 4, 1))


SUMS = [Sum, OneMore, TwoInputsSum]
FUNCTIONAL = [Product, Reversed, Expanded, InPlace, ChannelsLast, TwoInputs, Optional, *SUMS]


def found(network, size=12):
    x = torch.randn(2, 3, size, size)
    network.eval()
    return (*find_gates(network, lambda: network(x)), x)


@pytest.mark.parametrize('kind', FUNCTIONAL)
def test_a_gate_in_code_is_found_and_replaced(kind):
    network = kind()
    gates, reasons, x = found(network)
    (name,) = (gate.name for gate in gates)
    assert name.strip('[]').rstrip('_1') in ('mul', 'add')
    assert not reasons
    v = torch.rand(C)
    with torch.no_grad():
        expected = network(x)
        observed = []
        gates[0].switch.observe = lambda x, g: observed.append((x, g))
        box = nn.ModuleList([network])
        with switched(box, gates):
            torch.testing.assert_close(box[0](x), expected)
            gates[0].switch.observe = None
            gates[0].switch.v = v
            constant = box[0](x)
        with switched(box, gates, constant=True):
            assert torch.equal(box[0](x), constant)
        features = network.before(x).relu()
        g = network.g(features) + (kind in SUMS)
        torch.testing.assert_close(observed[0][1], g)
        torch.testing.assert_close(constant, network.after(features * v[:, None, None]))
        assert box[0] is network
        plain = without_gates(network, gates)['']
        torch.testing.assert_close(plain(x), network.after(features))
    assert 'fc' not in dict(plain.named_children())


@pytest.mark.parametrize('attention', [SE(C), ECA(C), Attention()], ids=['SE', 'ECA', 'a class of this test'])
def test_a_module_that_is_a_gate_is_replaced_as_a_whole(attention):
    network = sequential(attention)
    gates, reasons, x = found(network)
    assert [(gate.name, gate.kind) for gate in gates] == [('2', type(attention).__name__)]
    assert not reasons
    with torch.no_grad(), switched(nn.ModuleList([network]), gates):
        assert network[2] is gates[0].switch
        gates[0].switch.v = torch.full((C,), 0.5)
        torch.testing.assert_close(network(x), network[3](0.5 * network[:2](x)))
    assert isinstance(without_gates(network, gates)['2'], nn.Identity)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(C, 1, 1))

    def forward(self, x):
        return x * self.gamma * torch.sigmoid(x)


class Spatial(nn.Module):
    def forward(self, x):
        return x * x.mean(1, keepdim=True).sigmoid()


class Coordinate(nn.Module):
    def forward(self, x):
        return x * x.mean(3, keepdim=True).sigmoid() * x.mean(2, keepdim=True).sigmoid()


@pytest.mark.parametrize('module', [LayerScale(), nn.SiLU(), nn.Hardswish()])
def test_other_products_are_no_attention(module):
    gates, reasons, _ = found(sequential(module))
    assert not gates
    assert not reasons


@pytest.mark.parametrize('module', [Spatial(), Coordinate(), CBAM(C)])
def test_attention_to_positions_stays_with_its_reason(module):
    gates, reasons, _ = found(sequential(module))
    assert not gates
    assert [name.partition('.')[0] for name in reasons] == ['2']
    assert 'positions' in next(iter(reasons.values()))


def test_attention_to_positions_does_not_keep_other_attention_in_the_same_code():
    class Both(Product):
        def forward(self, x):
            return super().forward(x) * x.mean(1, keepdim=True)[:, :, 2:, 2:]

    gates, reasons, _ = found(Both())
    assert [gate.name for gate in gates] == ['[mul]']
    assert list(reasons) == ['']


class WithOptions(nn.Module):
    """Network of a block whose code depends on arguments that are no tensors."""

    class Block(Product):
        def forward(self, x, rate=None, mask=None, training=True):
            x = super().forward(x)
            if rate and training:
                x = x * (1 - rate)
            return x if mask is None else x * mask

    def __init__(self):
        super().__init__()
        self.block = self.Block()

    def forward(self, x):
        return self.block(x, 0.5, mask=None)


def test_code_is_captured_for_the_arguments_that_it_gets():
    network = WithOptions()
    gates, reasons, x = found(network)
    assert [gate.name for gate in gates] == ['block[mul]']
    assert not reasons
    with torch.no_grad():
        features = network.block.before(x).relu()
        plain = without_gates(network, gates)['block']
        torch.testing.assert_close(plain(x, 0.5, mask=None), 0.5 * network.block.after(features))


class Multiply(nn.Module):
    """Product as a module, as in networks converted from ONNX."""

    def forward(self, x, y):
        return x * y


class Converted(Product):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, C, 1, 1))
        self.scale, self.attention = Multiply(), Multiply()

    def forward(self, x):
        x = self.scale(self.before(x).relu(), self.weight)
        return self.after(self.attention(x, self.g(x)[:, :, None, None]))


def test_weights_in_captured_code_are_no_attention():
    gates, reasons, _ = found(Converted())
    assert [gate.name for gate in gates] == ['[attention]']
    assert not reasons


@pytest.mark.parametrize('name', ['resnest14d', 'skresnet18'])
def test_attention_to_branches_stays(name):
    gates, reasons, _ = found(timm.create_model(name), 64)
    assert not gates
    assert set(reasons.values()) == {f'{reason} also weighs positions or branches' for reason in KINDS[name]}


KINDS = {'resnest14d': ['SplitAttn'], 'skresnet18': ['SelectiveKernel']}


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        *(('seresnet18', 8), ('ecaresnet26t', 8), ('mobilenetv3_small_050', 9), ('efficientnet_b0', 16)),
        *(
            ('regnety_002', 13),
            ('tinynet_e', 10),
            ('ghostnet_050', 7),
            ('hardcorenas_a', 8),
            ('lcnet_050', 2),
        ),
        *(('ese_vovnet19b_slim_dw', 4), ('resnet18', 0), ('convnext_atto', 0), ('mobilevitv2_050', 0)),
    ],
)
def test_the_gates_of_timm_are_found(name, count):
    assert len(found(timm.create_model(name), 64)[0]) == count


@pytest.mark.parametrize(
    ('name', 'count'), [('mobilenet_v3_small', 9), ('efficientnet_b0', 16), ('regnet_y_400mf', 16)]
)
def test_the_gates_of_torchvision_are_found_also_in_a_graph(name, count):
    network = getattr(torchvision.models, name)().eval()
    assert len(found(network, 64)[0]) == count

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return type(module).__name__ != 'SqueezeExcitation' and super().is_leaf_module(module, name)

    graph = fx.GraphModule(network, Tracer().trace(network))
    gates, _, x = found(graph, 64)
    assert len(gates) == count
    plain = without_gates(graph, gates)['']
    trace = Trace(plain)
    with torch.no_grad(), trace:
        plain(x)
    names = [call.name for call in trace.calls if call.module is None]
    assert not {'mul', 'sigmoid', 'hardsigmoid'} & set(names)
    assert names.count('adaptive_avg_pool2d') == 1  # before the classifier
