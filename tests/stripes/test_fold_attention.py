"""Attention is removed from trained networks, as far as that does not change what they compute."""

import copy

import mmpretrain.models.backbones as mmpretrain
import pytest
import timm
import torch
import torchvision
from helpers import randomize_norms
from torch import nn

import mmasr
from mmasr import SE
from mmasr.core.differences import tensors
from mmasr.errors import InputError
from mmasr.stripes.distill import loss
from mmasr.stripes.gates import find_gates
from mmasr.stripes.trace import Trace

ALL = float('inf')


def images(count=24, size=32, batch=8):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(count, 3, size, size, generator=generator).split(batch))


def classifier(*attention, channels=8):
    """Return a network with a convolution, BatchNorm and ReLU before each attention."""
    torch.manual_seed(0)
    layers = [
        layer
        for number, module in enumerate(attention)
        for layer in (
            nn.Conv2d(channels if number else 3, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            module,
        )
    ]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
    return randomize_norms(nn.Sequential(*layers, *head))


def operators(network, x):
    trace = Trace(network)
    with torch.no_grad(), trace:
        network(x)
    return sorted(call.name for call in trace.calls if call.module is None)


STOCK = {  # network with attention -> the same network without
    'timm SE-ResNet': (lambda: timm.create_model('seresnet18'), lambda: timm.create_model('resnet18')),
    'timm MobileNetV3': (lambda: timm.create_model('mobilenetv3_small_050'), None),
    'timm EfficientNet': (lambda: timm.create_model('efficientnet_b0'), None),
    'timm TinyNet': (lambda: timm.create_model('tinynet_e'), None),
    'timm HardCoRe-NAS': (lambda: timm.create_model('hardcorenas_a'), None),
    'timm ECA-ResNet': (
        lambda: timm.create_model('ecaresnet26t'),
        lambda: timm.create_model('ecaresnet26t', block_args={}),
    ),
    'timm LCNet': (lambda: timm.create_model('lcnet_050'), None),
    'timm GhostNet': (lambda: timm.create_model('ghostnet_050'), None),
    'timm RegNetY': (
        lambda: timm.create_model('regnety_002'),
        lambda: timm.create_model('regnety_002', se_ratio=0),
    ),
    'timm ESE-VoVNet': (lambda: timm.create_model('ese_vovnet19b_slim_dw'), None),
    'torchvision MobileNetV3': (torchvision.models.mobilenet_v3_small, None),
    'torchvision RegNetY': (torchvision.models.regnet_y_400mf, None),
    'MMPretrain SE-ResNet': (lambda: mmpretrain.SEResNet(50), lambda: mmpretrain.ResNet(50)),
    'MMPretrain MobileNetV3': (lambda: mmpretrain.MobileNetV3('small', out_indices=(12,)), None),
}


@pytest.mark.parametrize('name', STOCK)
def test_all_attention_of_a_network_goes_into_its_layers(name):
    make, stock = STOCK[name]
    network = randomize_norms(make())
    with torch.no_grad():
        batches = images(4, 64, batch=2)
        report = mmasr.fold_attention(network, batches, tolerance=ALL, epochs=0)
        assert report.removed == list(report.modules)
        x = batches[0]
        assert all(output.isfinite().all() for _, output in tensors('', network(x)))
        found = operators(network, x)
        assert not find_gates(network, lambda: network(x))[0]
        assert not {'mul', 'sigmoid', 'hardsigmoid', 'mean'} & set(found)
        if stock is not None:
            assert found == operators(randomize_norms(stock()), x)


def hugging_face_regnet():
    transformers = pytest.importorskip('transformers', reason='Hugging Face is not installed')
    sizes = {'depths': [1, 1, 2, 1], 'hidden_sizes': [16, 32, 64, 128], 'embedding_size': 16}
    config = transformers.RegNetConfig(layer_type='y', groups_width=8, **sizes)
    return transformers.RegNetForImageClassification(config)


def hugging_face_efficientnet():
    transformers = pytest.importorskip('transformers', reason='Hugging Face is not installed')
    factors = {'width_coefficient': 0.5, 'depth_coefficient': 0.5, 'hidden_dim': 640}
    return transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(image_size=64, **factors)
    )


def segmentation_models_unet():
    smp = pytest.importorskip(
        'segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed'
    )
    return smp.Unet('efficientnet-b0', encoder_weights=None, classes=3)


@pytest.mark.parametrize(
    ('make', 'count'),
    [(hugging_face_regnet, 5), (hugging_face_efficientnet, 10), (segmentation_models_unet, 16)],
)
def test_all_attention_of_other_libraries_is_removed(make, count):
    network = randomize_norms(make()).eval()
    report = mmasr.fold_attention(network, images(4, 64, batch=2), tolerance=ALL, epochs=0)
    assert len(report.removed) == len(report.modules) == count


class InCode(nn.Module):
    """Multiplies in the code of the network itself, which also has a head that only training uses."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, 10, 1)
        self.auxiliary = nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv(x).relu()
        x = x + x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.last(x).mean((2, 3))


@pytest.mark.parametrize('as_graph', [False, True], ids=['code', 'graph'])
def test_attention_in_the_code_of_the_network_itself_is_removed_in_place(as_graph):
    network = InCode().eval()
    if as_graph:
        network = torch.fx.symbolic_trace(network)
    names = [name for name in network.state_dict() if not name.startswith('fc.')]
    report = mmasr.fold_attention(network, images(), tolerance=ALL, epochs=0)
    assert report.removed == ['[add]']
    assert report.modules['[add]'].placement == 'conv before it'
    assert (report.modules['[add]'].values.mean > 1).all()  # 1 + g
    x = images()[0]
    assert operators(network, x) == ['conv2d', 'conv2d', 'mean', 'relu']
    assert list(network.state_dict()) == names
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x))


def test_a_module_that_is_used_in_two_places_is_removed_from_both():
    attention = SE(8, ratio=2)
    network = classifier(attention, attention)
    report = mmasr.fold_attention(network, images(), tolerance=ALL, epochs=0)
    assert report.modules['3'].placement == '1, 5 before it'
    assert [type(network[i]) for i in (3, 7)] == [nn.Identity] * 2


def test_a_part_that_runs_several_times_takes_constants_once():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = classifier(SE(8, ratio=2))

        def forward(self, x):
            return torch.stack([self.head(x), self.head(x[:, :, ::2, ::2])], 1)

    network = Pyramid().eval()
    report = mmasr.fold_attention(network, images(240), tolerance=ALL, epochs=1)
    assert report.modules['head.3'].placement == 'head.1 before it'
    assert report.change <= report.start < 0.1


def test_constants_start_at_the_means_weighted_by_energy():
    torch.manual_seed(0)
    network = classifier(SE(8, ratio=2))
    with torch.no_grad():
        network[1].bias[0] = -100  # this channel is 0 after the ReLU
        batches = images()
        x = torch.cat(batches[1:])
        maps = network[:3](x)
        g = network[3].weights(maps)[:, :, 0, 0]
        energy = maps.square().sum((2, 3))
        v = (energy * g).sum(0) / energy.sum(0).clamp(min=1e-30)
        v[0] = g[:, 0].mean()
        weight = network[1].weight * v
        report = mmasr.fold_attention(network, batches, tolerance=ALL, epochs=0)
    torch.testing.assert_close(network[1].weight, weight)
    assert report.modules['3'].placement == '1 before it'
    torch.testing.assert_close(report.modules['3'].values.mean, g.double().mean(0))


class Dependent(nn.Module):
    """Attention that truly depends on the image."""

    def forward(self, x):
        return x * (1 + (40 * x.mean((2, 3), keepdim=True)).sin())


def test_attention_that_depends_on_the_image_stays_and_the_rest_goes():
    network = classifier(SE(8, ratio=2), Dependent(), SE(8, ratio=2))
    batches = [x * torch.linspace(0.5, 2, len(x)).view(-1, 1, 1, 1) for x in images(240)]
    with torch.no_grad():
        network[-1].bias -= network(torch.cat(batches)).mean(0)  # so that the decisions depend on the image
    before = copy.deepcopy(network)
    report = mmasr.fold_attention(network, batches, tolerance=0.3, epochs=2)
    assert report.removed == ['3', '11']
    assert type(network[7]) is Dependent
    assert report.modules['7'].effect > 3 * max(report.modules[name].effect for name in ('3', '11'))
    assert 'changes more than 30.00%' in report.modules['7'].reason
    assert report.change <= 0.3 < report.all_removed
    x = torch.cat(batches[::10])
    changed = (network(x).argmax(1) != before(x).argmax(1)).float().mean().item()
    assert changed == pytest.approx(report.change, abs=1e-6)
    assert '2 of 3 attention modules removed' in str(report)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_networks_of_other_types_keep_them(dtype):
    network = classifier(SE(8, ratio=2), SE(8, ratio=2)).to(dtype)
    batches = [x.to(dtype) for x in images(240)]
    report = mmasr.fold_attention(network, batches, tolerance=ALL, epochs=1)
    assert report.removed == ['3', '7']
    assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype, torch.int64}
    assert network(batches[0]).dtype == dtype


def test_the_result_is_deterministic():
    network = classifier(SE(8, ratio=2))
    networks = [network, copy.deepcopy(network)]
    for network in networks:
        mmasr.fold_attention(network, images(240), tolerance=ALL, epochs=2)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_all_weights_may_be_distilled_afterwards():
    batches = [x * torch.linspace(0.5, 2, len(x)).view(-1, 1, 1, 1) for x in images(240)]
    network = classifier(SE(8, ratio=2), Dependent())
    teacher = copy.deepcopy(network)
    constants, weights = copy.deepcopy(network), network
    mmasr.fold_attention(constants, batches, tolerance=ALL, epochs=3)
    report = mmasr.fold_attention(weights, batches, tolerance=ALL, epochs=3, weights=True)
    x = torch.cat(batches[::10])
    losses = [loss({'': teacher(x)}, {'': n(x)}).item() for n in (constants, weights)]
    assert losses[1] < losses[0]
    assert report.removed == ['3', '7']
    assert not torch.equal(network[-1].weight, teacher[-1].weight)
    statistics = [n[1].running_mean for n in (constants, weights)]
    assert torch.equal(*statistics)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*classifier(SE(8, ratio=2))[:4], nn.Conv2d(8, 8, 1))
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image, scale=1.0):
        x = self.body(image * scale)
        return {'boxes': self.boxes(x), 'scores': [self.scores(x)]}


@pytest.mark.parametrize('form', ['dict', 'tuple', 'lists of images', 'a function'])
def test_any_inputs_and_outputs_are_taken(form):
    network = Detector().eval()
    batches, options = images(240), {}
    if form == 'dict':
        batches = [{'image': x, 'scale': 0.5} for x in batches]
    elif form == 'tuple':
        batches = [(x, 0.5) for x in batches]
    elif form == 'lists of images':
        batches = [{'image': list(x), 'names': ['name'] * 8} for x in batches]
        options['forward'] = lambda model, batch: model(torch.stack(batch['image']))
    else:
        options['forward'] = lambda model, x: model(x)['scores']
    report = mmasr.fold_attention(network, iter(batches), tolerance=ALL, epochs=1, **options)
    assert report.removed == ['body.3']
    assert (report.images, report.held_out) == (240, 24)
    assert report.change <= report.start
    assert 'relative to the variance' in str(report)


def test_the_caller_may_judge_by_decoded_results():
    network = classifier(SE(8, ratio=2))
    calls = []
    before = copy.deepcopy(network.state_dict())

    def agreement(teacher, student):
        calls.append(teacher.shape == student.shape)
        return 0.5

    report = mmasr.fold_attention(network, images(), agreement=agreement)
    assert report.removed == []
    assert calls
    assert all(calls)
    assert report.all_removed == 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_tenth_of_a_single_batch_is_held_out():
    (x,) = images(40, batch=40)
    batch = {'image': list(x), 'scale': torch.ones(40, 1, 1, 1), 'name': 'a'}
    shapes = []

    def forward(model, batch):
        shapes.append((len(batch['image']), len(batch['scale']), batch['name']))
        return model(torch.stack(batch['image']) * batch['scale'])

    report = mmasr.fold_attention(classifier(SE(8, ratio=2)), [batch], forward=forward, epochs=0)
    assert (report.images, report.held_out) == (40, 4)
    assert set(shapes) == {(4, 4, 'a'), (36, 36, 'a')}


def test_the_caller_may_accept_the_network_with_constants():
    network = classifier(SE(8, ratio=2), SE(8, ratio=2))
    x = images()[0]
    seen = []

    def accept(student):
        seen.append(operators(student, x).count('sigmoid'))
        return seen[-1] > 0

    report = mmasr.fold_attention(network, images(), epochs=0, tolerance=0, accept=accept)
    assert seen == [0, 1]
    assert len(report.removed) == 1
    assert 'removing it too is not accepted' in str(report)
    assert operators(network, x).count('sigmoid') == 1


def test_attention_that_gets_more_than_a_map_stays():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x, scale):
            return x * (scale * self.fc(x.mean((2, 3))).sigmoid())[:, :, None, None]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Scaled()

        def forward(self, x):
            return self.attention(x, scale=0.5).relu()

    network = classifier(Wrapped(), SE(8, ratio=2))
    x = images()[0]
    expected = network(x)
    report = mmasr.fold_attention(network, images(), tolerance=ALL, epochs=0)
    assert report.removed == ['7']
    assert 'the network does not run without it' in report.modules['3.attention'].reason
    assert 'attention' in dict(network[3].named_children())
    assert network(x).shape == expected.shape


def test_attention_in_code_may_stay():
    with pytest.raises(InputError, match='its product is in the code of InCode, and not in a module of its'):
        mmasr.fold_attention(InCode().eval(), images(), capture=False)


def nan():
    batches = images()
    batches[0][0, 0, 0, 0] = torch.nan
    return batches


def with_asr():
    return mmasr.attach(classifier(SE(8)), {'type': 'SE'}, sites=['1']).eval()


@pytest.mark.parametrize(
    ('make', 'batches', 'options', 'message'),
    [
        (lambda: classifier(nn.Identity()), images(), {}, 'has no attention with one value per image'),
        (lambda: classifier(SE(8)), [], {}, 'there are no batches; pass some hundred'),
        (lambda: classifier(SE(8)), images(1), {}, 'one image is not enough'),
        (lambda: classifier(SE(8)).train(), images(), {}, r'in training mode; call model\.eval\(\) first'),
        (lambda: classifier(SE(8)), nan(), {}, 'NaN or infinite values; check the batches'),
        (lambda: classifier(SE(8)), images(), {'forward': lambda *_: 'x'}, 'without tensors to compare'),
        (with_asr, images(), {}, r'has re-parameterization \(1\); call mmasr\.fold first'),
        (
            lambda: classifier(SE(256), channels=256),
            images(3, batch=1),
            {},
            'too few to distill 256 constants',
        ),
    ],
)
def test_unusable_input_is_one_line_and_changes_nothing(make, batches, options, message):
    network = make()
    before, modules = copy.deepcopy(network.state_dict()), list(network.modules())
    with pytest.raises(InputError, match=message):
        mmasr.fold_attention(network, batches, tolerance=ALL, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert list(network.modules()) == modules
