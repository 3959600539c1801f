"""Tests of attach: sites, errors that leave the network unchanged, and state dicts."""

import pytest
import torch
import torch.nn.utils.prune
import torchvision
from helpers import randomize
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mmasr
from mmasr.convolutions.acnet import ACNet
from mmasr.core.compat import FUSED_PATH_RESPECTS_HOOKS
from mmasr.core.foldable import find_foldable
from mmasr.core.host import Host
from mmasr.core.reparameterization import REPARAMETERIZATIONS
from mmasr.errors import InputError, is_bug


def test_a_stock_checkpoint_lacks_only_the_keys_of_the_asrs():
    model = mmasr.attach(torchvision.models.resnet18(), {'type': 'SE'})
    result = model.load_state_dict(torchvision.models.resnet18().state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all('.asr.' in key for key in result.missing_keys)


def test_sites_are_names_or_a_regular_expression_for_whole_names():
    def hosts(sites):
        model = mmasr.attach(torchvision.models.vgg11_bn(init_weights=False), {'type': 'SE'}, sites=sites)
        return [name for name, m in model.named_modules() if isinstance(m, Host)]

    assert hosts(['features.1', 'features.5']) == ['features.1', 'features.5']
    assert hosts(r'features\.[15]') == ['features.1', 'features.5']
    assert hosts('features.25') == ['features.25']


def test_a_site_that_is_named_twice_gets_one_asr():
    model = mmasr.attach(nn.Sequential(nn.BatchNorm2d(4)), {'type': 'SE'}, sites=['0', '0'])
    assert len([module for module in model.modules() if isinstance(module, mmasr.ASR)]) == 1


@pytest.mark.parametrize(
    ('sites', 'message'),
    [
        ('bn3', "no module whose whole name matches 'bn3'"),
        (['features.1', 'bn3'], 'no module named bn3'),
        (['features.1', 'features.2'], r"features\.2 \(ReLU\) can't carry an ASR; a host is a BatchNorm"),
    ],
    ids=['no match', 'a missing name', 'an unsuitable layer'],
)
def test_wrong_sites_are_rejected_and_nothing_changes(sites, message):
    model = torchvision.models.vgg11_bn(init_weights=False)
    before = [type(m) for m in model.modules()]
    with pytest.raises(InputError, match=message):
        mmasr.attach(model, {'type': 'SE'}, sites=sites)
    assert [type(m) for m in model.modules()] == before


def test_an_unknown_network_is_rejected_with_layers_that_are_possible_sites():
    message = r'AlexNet is not a network with known sites; pass sites=.*features\.0, features\.3'
    with pytest.raises(InputError, match=message):
        mmasr.attach(torchvision.models.AlexNet(), {'type': 'SE'})


@pytest.mark.parametrize('kind', ['SE', 'ACNet'])
def test_a_layer_with_an_asr_is_rejected(kind):
    network = mmasr.attach(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), {'type': 'SE'}, sites=['0'])
    with pytest.raises(InputError, match=r'^0 \(HostConv2d\) already has an ASR'):
        mmasr.attach(network, {'type': kind}, sites=['0'])


def test_branches_inside_a_block_with_branches_are_rejected():
    network = nn.Sequential(ACNet(4, 4))
    message = r'^0\.square\.0 is in 0 \(ACNet\), which merges its own layers'
    with pytest.raises(InputError, match=message):
        mmasr.attach(network, {'type': 'DBB'}, sites=['0.square.0'])
    assert type(network[0].square[0]) is nn.Conv2d


def test_a_layer_with_an_overridden_forward_is_rejected():
    """The hooks of accelerate override it on the instance, which would hide the forward of the host."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    model[0].forward = model[0].forward
    with pytest.raises(InputError, match=r'^0 \(Conv2d\) has an overridden forward; call attach before'):
        mmasr.attach(model, {'type': 'SE'}, sites=['0'])


@pytest.mark.skipif(FUSED_PATH_RESPECTS_HOOKS, reason='newer versions of torch support it')
def test_a_site_that_the_fused_path_of_a_transformer_layer_would_ignore_is_rejected():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(InputError, match=r'linear2 is in an nn\.TransformerEncoderLayer, whose fused path'):
        mmasr.attach(layer, {'type': 'SE'}, sites=['linear2'])


@pytest.mark.parametrize(
    ('spec', 'options', 'message'),
    [
        ({'type': 'SE', 'ration': 4}, {}, r"got an unexpected keyword argument 'ration'$"),
        ({'type': 'SE'}, {'detla': 2}, r"__init__\(\) got an unexpected keyword argument 'detla'$"),
        ({'type': 'ACNet', 'ratio': 4}, {}, r"__init__\(\) got an unexpected keyword argument 'ratio'$"),
    ],
    ids=['of the attention', 'of ASR', 'of the branches'],
)
def test_an_unexpected_option_is_an_error_that_names_it_and_not_a_bug(spec, options, message):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    with pytest.raises((InputError, TypeError), match=message) as caught:
        mmasr.attach(model, spec, sites=['1'], **options)
    assert not is_bug(caught.value)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Conv2d]


def test_an_error_in_an_option_names_the_site():
    with pytest.raises(InputError, match=r'^1: delta is the number of attention modules') as caught:
        mmasr.attach(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), {'type': 'SE'}, sites=['1'], delta=0)
    assert isinstance(caught.value.__cause__, InputError)


def test_a_whole_model_that_is_one_convolution_is_returned_as_its_replacement():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    replaced = mmasr.attach(conv, {'type': 'ACNet'}, sites='')
    assert isinstance(replaced, ACNet)
    assert torch.equal(replaced.square[0].weight, conv.weight)


@pytest.mark.parametrize(
    ('spec', 'sites', 'options', 'message'),
    [
        ({'type': 'SE'}, 3, {}, 'sites must be a regular expression or a sequence of names, not 3'),
        ({'type': 'SE'}, [3], {}, r'sites must be .*, not \[3\]'),
        ({'type': 'SE'}, ['0'], {'delta': '2'}, "delta is the number of attention modules .* not '2'"),
        ({'type': 'SE', 'ratio': 0}, ['0'], {}, 'ratio must be a positive number, not 0'),
        ({'type': 'SE', 'ratio': 'a'}, ['0'], {}, "ratio must be a positive number, not 'a'"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_input_error(spec, sites, options, message):
    with pytest.raises(InputError, match=message):
        mmasr.attach(nn.Sequential(nn.BatchNorm2d(8)), spec, sites, **options)


def shared_head(layers=3):
    """Return a head whose levels share a convolution and a normalization, and have another one each."""
    conv, last = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8)
    return nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), last) for _ in range(layers))


@pytest.mark.parametrize(
    'kind',
    ['DBB', 'ACNet', 'OfflineOREPA', 'XVolution', 'OREPA', 'SE', 'RepVGG', 'QARepVGG', 'MobileOne'],
)
@pytest.mark.parametrize('sites', [['0.0'], ['2.0'], ['0.0', '1.0'], r'.*\.0'], ids=str)
def test_a_layer_in_several_places_gets_it_once_in_all(kind, sites):
    head = randomize(shared_head())
    x = torch.randn(2, 8, 6, 6)
    mmasr.attach(head, {'type': kind}, sites=sites)
    assert len({id(level[0]) for level in head}) == 1
    assert len({id(level[3]) for level in head}) == 1
    randomize(head).eval()
    expected = [level(x) for level in head]
    assert len(find_foldable(head).names()) == 1
    mmasr.fold(head)
    assert len({id(level[0]) for level in head}) == 1
    if kind != 'XVolution':
        assert type(head[1][0]) is nn.Conv2d
    for level, output in zip(head, expected, strict=True):
        assert (level(x) - output).abs().max() <= 1e-5 * output.abs().max()


def test_branches_do_not_separate_weights_that_two_layers_share():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    with pytest.raises(InputError, match=r'^0 shares its weight with 1, which branches would separate'):
        mmasr.attach(model, {'type': 'DBB'}, sites=['0'])
    assert type(model[0]) is nn.Conv2d


def pruned(layer):
    nn.utils.prune.l1_unstructured(layer, 'weight', 0.5)
    return layer


COMPUTED = {
    'spectral norm': lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
    'old spectral norm': lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
    'weight norm': lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
    'old weight norm': lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
    'pruning': lambda: pruned(nn.Conv2d(4, 4, 3, padding=1)),
    'lazy': lambda: nn.LazyConv2d(4, 3, padding=1),
}


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('kind', ['SE', *sorted({*REPARAMETERIZATIONS} - {'ASR'})])
@pytest.mark.parametrize('name', COMPUTED)
def test_no_kind_takes_a_layer_without_a_weight_of_its_own(kind, name):
    model = nn.Sequential(COMPUTED[name]())
    before = type(model[0]), list(model.state_dict())
    with pytest.raises(InputError, match=r"^0 .*(has no weight of its own|has no weight yet|can't become)"):
        mmasr.attach(model, {'type': kind}, sites=['0'])
    assert (type(model[0]), list(model.state_dict())) == before


def test_a_layer_with_hooks_for_its_state_dict_is_rejected():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    model[0].register_state_dict_pre_hook(lambda *args: None)
    with pytest.raises(InputError, match=r'^0 \(Conv2d\) has hooks for its state dict'):
        mmasr.attach(model, {'type': 'DBB'}, sites=['0'])


@pytest.mark.parametrize('kind', [*sorted({*REPARAMETERIZATIONS} - {'ASR'}), 'SE', 'SRM'])
def test_the_meta_device_takes_a_training_step(kind):
    """To count the memory of a training without any: only shapes are computed."""
    with torch.device('meta'):
        network = torchvision.models.resnet18()
        if kind == 'DilatedReparam':  # ResNet-18 has no depthwise convolutions
            network = torchvision.models.convnext_tiny()
        mmasr.attach(network, {'type': kind})
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        network(torch.zeros(2, 3, 64, 64)).sum().backward()
        optimizer.step()
    assert all(p.is_meta and (p.grad is not None or not p.requires_grad) for p in network.parameters())


DEFERRED = {
    'SE': {'type': 'SE'},
    'ECA': {'type': 'ECA'},
    'init_identity': {'type': 'ASR', 'attention': {'type': 'SE'}, 'init_identity': True},
    'OREPA': {'type': 'OREPA'},
}


def without_values(spec):
    """Attach to a network with a 7 x 7 convolution, at the default sites, and train and run it."""
    network = mmasr.attach(torchvision.models.resnet18(), spec)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(2, 3, 32, 32)
    network.train()(x).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in network.parameters())
    optimizer.step()
    network.eval()
    with torch.no_grad():
        assert network(x).shape == network(x).shape == (2, 1000)
    return network


@pytest.mark.parametrize('spec', DEFERRED.values(), ids=DEFERRED)
def test_fake_tensors(spec):
    with FakeTensorMode():
        without_values(spec)


@pytest.mark.parametrize('spec', DEFERRED.values(), ids=DEFERRED)
def test_deferred_initialization(spec):
    with torch.device('meta'):
        network = without_values(spec)
    network.to_empty(device='cpu').zero_grad()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)  # undefined
    for module in network.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    for module in network.modules():
        if isinstance(module, Host):
            module.init_weights()
    expected = mmasr.attach(torchvision.models.resnet18(), spec)
    for module, other in zip(network.modules(), expected.modules(), strict=True):
        if isinstance(module, mmasr.ASR) and module.init_identity:  # divides by random values
            assert (module.scale() == 1).all()
        else:
            torch.testing.assert_close(module._buffers, other._buffers)
    x = torch.randn(2, 3, 32, 32)
    network(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
