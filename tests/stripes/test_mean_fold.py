"""Finding the hosts of ordinary attention, and folding its means into them."""

import pytest
import timm
import torch
from helpers import randomize, randomize_norms
from mmpretrain.models import MobileNetV3, SEResNet
from timm.models.byobnet import RepVggBlock
from torch import nn

import mmasr
from mmasr.core.class_surgery import Mixin
from mmasr.stripes import Observer, attention_modules
from mmasr.stripes.mean_fold import Constant, find_hosts, fold_means, replaced

X = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def last(output):
    return output[-1] if isinstance(output, tuple | list) else output


def fold_all(network, x=X):
    """Fold all attention that can be folded.

    Returns the outputs with attention, with its means in its place, and folded; and the hosts and the reasons
    of find_hosts.
    """
    with Observer(network) as observer, torch.no_grad():
        trained = last(network(x))
    means = {name: stripes.v.mean.float() for name, stripes in observer.stripes.items()}
    hosts, reasons = find_hosts(network, means, lambda: network(x[:1]))
    with torch.no_grad():
        with replaced(network, {name: Constant(means[name]) for name in hosts}):
            expected = last(network(x))
        assert torch.equal(last(network(x)), trained)  # the attention is back in its place
        mmasr.fold(network)
        fold_means(network, means, hosts)
        return trained, expected, last(network(x)), hosts, reasons


#: Name -> how to build a network, and how many of its modules can be folded, and how many cannot.
NETWORKS = {
    'mmpretrain SEResNet': (lambda: SEResNet(50, base_channels=16, stem_channels=16), 16, 0),
    'timm seresnet18': (lambda: timm.create_model('seresnet18', num_classes=10), 8, 0),
    'timm ecaresnet26t': (lambda: timm.create_model('ecaresnet26t', num_classes=10), 8, 0),
    'timm seresnet18, features': (lambda: timm.create_model('seresnet18', features_only=True), 8, 0),
    # Three modules follow a ReLU, the others a Hardswish.
    'mmpretrain MobileNetV3': (lambda: MobileNetV3('large'), 3, 5),
    # One layer is BatchNorm and ReLU, which scales; in EfficientNet it is BatchNorm and SiLU, which does not.
    'timm regnety': (lambda: timm.create_model('regnety_002', num_classes=10), 13, 0),
    'timm efficientnet': (lambda: timm.create_model('efficientnet_b0', num_classes=10), 0, 16),
    # The hosts already have an ASR.
    'ASR + SE': (
        lambda: mmasr.attach(timm.create_model('seresnet18', num_classes=10), {'type': 'ECA'}),
        8,
        0,
    ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_folded_network_computes_the_same_as_with_the_means_in_place(name):
    make, count, others = NETWORKS[name]
    network = randomize_norms(make())
    trained, expected, folded, hosts, reasons = fold_all(network)
    assert (len(hosts), len(reasons)) == (count, others)
    assert len(attention_modules(network)) == others
    assert not any(isinstance(module, mmasr.ASR) for module in network.modules())
    # The products are rounded, and the errors add up over the layers.
    assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()
    if count > 3:  # the values did depend on the image
        assert (trained - expected).abs().max() > 1e-4 * expected.abs().max()


class Net(nn.Module):
    """A small network with one attention module and a given forward function."""

    def __init__(self, attention, forward, **layers):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.se = attention
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def se():
    return randomize(mmasr.SE(8, ratio=2))


def two_norms(net, x):
    return net.se(net.norm(net.conv(x))) + net.se(net.norm2(net.conv(x)))


def norm_used_twice(net, x):
    return net.se(net.norm(net.conv(x))) + net.norm(net.conv(x + 1))


def two_modules(net, x):
    y = net.norm(net.conv(x))
    return net.se(y) + net.eca(y)


def branch(net, x):
    y = net.norm(net.conv(x))
    return net.se(y) + net.relu(y)


#: Case -> network and the reason why its attention cannot be folded.
WITHOUT_HOST = {
    'CBAM': (Net(mmasr.CBAM(8, ratio=2), lambda n, x: n.se(n.norm(n.conv(x)))), 'it does more than multiply'),
    'a sum': (
        Net(se(), lambda n, x: n.se(n.norm(n.conv(x)) + 1)),
        'its input does not come directly from a layer',
    ),
    'pooling': (
        Net(se(), lambda n, x: n.se(n.pool(n.norm(n.conv(x)))), pool=nn.MaxPool2d(2)),
        r'comes from pool \(MaxPool2d\)',
    ),
    'after another module': (
        Net(se(), lambda n, x: n.se(n.eca(n.norm(n.conv(x)))), eca=mmasr.ECA(8)),
        'after eca, which depends',
    ),
    'two hosts': (
        Net(se(), two_norms, norm2=nn.BatchNorm2d(8)),
        'it follows norm in one place, but not in another',
    ),
    'the host runs twice': (Net(se(), norm_used_twice), 'norm also feeds something else'),
    'the host feeds a branch': (Net(se(), branch, relu=nn.ReLU()), 'norm also feeds something else'),
    'two modules on one host': (
        Net(se(), two_modules, eca=mmasr.ECA(8)),
        'norm also feeds something else',
    ),
    'nothing to scale': (
        Net(se(), lambda n, x: n.se(n.plain(n.conv(x))), plain=nn.InstanceNorm2d(8)),
        'has no weight of its own',
    ),
    'it does not run': (Net(se(), lambda n, x: n.norm(n.conv(x))), 'it did not run'),
}


@pytest.mark.parametrize('case', WITHOUT_HOST)
def test_there_is_a_reason_for_attention_without_a_host(case):
    network, reason = WITHOUT_HOST[case]
    randomize_norms(network)
    with torch.no_grad():
        expected = network(X)
    hosts, reasons = find_hosts(network, {'se': torch.full((8,), 0.5)}, lambda: network(X))
    assert not hosts
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reasons['se'])
    with torch.no_grad():
        assert torch.equal(network(X), expected)


@pytest.fixture
def through_a_relu():
    return randomize_norms(Net(se(), lambda n, x: n.se(n.relu(n.norm(n.conv(x))))))


def test_a_positive_mean_passes_a_relu(through_a_relu):
    hosts, _ = find_hosts(through_a_relu, {'se': torch.full((8,), 0.5)}, lambda: through_a_relu(X))
    assert hosts


def test_a_negative_mean_does_not_pass_a_relu(through_a_relu):
    hosts, reasons = find_hosts(through_a_relu, {'se': torch.full((8,), -0.5)}, lambda: through_a_relu(X))
    assert not hosts
    assert 'scaling norm (BatchNorm2d) does not scale the input of the module' in reasons['se']


def test_folding_means_does_not_merge_branches():
    """A config may be unable to build the merged block."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), mmasr.SE(8), RepVggBlock(8, 8)).eval()
    fold_means(network, {'2': torch.rand(8)}, {'2': '1'})
    assert type(network[1]) is nn.BatchNorm2d
    assert type(network[2]) is nn.Identity
    assert network[3].reparam_conv is None


def hosts_of_three_kinds():
    """Return a network with attention after a BatchNorm, a GroupNorm and a RepVGG block."""
    norms = [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), RepVggBlock(8, 8)]
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3), norm, mmasr.SE(8)) for norm in norms)).eval()


def everything_but_tensors(network):
    """Return the class, the names of all attributes and the hooks of every module."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            {key: [*value.values()] for key, value in vars(module).items() if 'hooks' in key},
        )
        for name, module in network.named_modules()
    }


def test_folding_means_leaves_no_trace_of_a_host():
    """No guard, batching or fused-path hook stays on any module, and no mixin in any class."""
    network, untouched = hosts_of_three_kinds(), hosts_of_three_kinds()
    fold_means(network, {f'{i}.2': torch.rand(8) for i in range(3)}, {f'{i}.2': f'{i}.1' for i in range(3)})
    for block in untouched:
        block[2] = nn.Identity()
    assert not any(isinstance(module, Mixin) for module in network.modules())
    assert everything_but_tensors(network) == everything_but_tensors(untouched)
