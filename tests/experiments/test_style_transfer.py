"""Style transfer under batch noise, and tools/style_transfer.py."""

import json

import pytest
import timm
import torch
from helpers import run_tool
from PIL import Image
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

import mmasr
from mmasr.experiments.noise import NoisyBN
from mmasr.experiments.style_images import draw_style
from mmasr.experiments.style_transfer import (
    NETWORKS,
    Data,
    PerceptualLoss,
    Recipe,
    build_network,
    evaluate,
    gram_matrix,
    load_features,
    run_experiment,
    total_variation,
    train,
)

RECIPE = Recipe(steps=4, batch=2, crop=32, channels=4, draws=2)


class Maps(nn.Module):
    """Four feature maps from random convolutions, in place of a pretrained network."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, n + 2, 3, 2, 1) for n in (3, 5, 7, 9))

    def forward(self, x):
        found = []
        for conv in self.convs:
            x = conv(x).relu()
            found.append(x)
        return found


@pytest.fixture(scope='module')
def data():
    torch.manual_seed(0)
    images = [draw_style(40, seed) for seed in range(4)]
    features = Maps().requires_grad_(False)
    return Data(images[:2], [image[:, :32] for image in images[2:]], draw_style(32, 4), features)


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def untracked(items, _):
    return items


@pytest.mark.parametrize('name', NETWORKS)
def test_a_picture_has_the_size_of_its_photograph(name):
    network = build_network(name, RECIPE)
    pictures = network(torch.rand(2, 3, 32, 40))
    assert pictures.shape == (2, 3, 32, 40)
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_the_networks_differ_only_in_their_normalizations():
    networks = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        networks[name] = build_network(name, RECIPE)
    weights = {name: [m.weight for m in n.modules() if type(m) is nn.Conv2d] for name, n in networks.items()}
    assert len(weights['bn']) == 16  # 3 down, 10 in blocks, 2 up and the last
    for found in weights.values():
        assert all(torch.equal(a, b) for a, b in zip(found, weights['bn'], strict=True))
    kinds = {
        name: [m for m in n.modules() if isinstance(m, nn.InstanceNorm2d | nn.BatchNorm2d)]
        for name, n in networks.items()
    }
    assert {name: len(found) for name, found in kinds.items()} == dict.fromkeys(NETWORKS, 15)
    assert all(type(norm) is nn.InstanceNorm2d and norm.affine for norm in kinds['in'])
    assert all(type(norm) is nn.BatchNorm2d for norm in kinds['bn'])
    for name in ('noise', 'noise_half', 'noise_asr_se'):
        assert all(isinstance(norm, NoisyBN) and norm.n_a == norm.n_b == {'std': 0.5} for norm in kinds[name])


def test_the_control_starts_at_one_half_where_there_is_an_asr():
    network, control = (build_network(name, RECIPE) for name in ('noise_asr_se', 'noise_half'))
    sites = {name.removesuffix('.asr') for name, m in network.named_modules() if isinstance(m, mmasr.ASR)}
    halved = {
        name
        for name, module in control.named_modules()
        if isinstance(module, NoisyBN) and module.weight.eq(0.5).all()
    }
    assert sites == halved
    assert sites == {f'blocks.{number}.norm2' for number in range(5)}


def test_losses_match_their_definitions(data):
    pictures, photographs = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    content, style = PerceptualLoss(data.features, data.style)(pictures, photographs)
    found, target = data.features(pictures), data.features(data.style[None] / 255)
    expected = data.features(photographs)[2]
    relative = [
        ((a - b).square().sum() / b.square().sum()).item() for a, b in zip(found[2], expected, strict=True)
    ]
    assert content.item() == pytest.approx(sum(relative) / 2, rel=1e-5)
    total = 0
    for one, other in zip(found, target, strict=True):
        wanted = torch.einsum('chw,dhw->cd', other[0], other[0]) / other[0, 0].numel()
        for picture in one:
            gram = torch.einsum('chw,dhw->cd', picture, picture) / picture[0].numel()
            total += ((gram - wanted).square().sum() / wanted.square().sum()).item() / 2
    assert style.item() == pytest.approx(total, rel=1e-5)


def test_the_style_image_itself_has_no_style_loss(data):
    photograph = torch.rand(1, 3, 32, 32)
    content, style = PerceptualLoss(data.features, data.style)(data.style[None] / 255, photograph)
    assert style < 1e-10
    assert content > 0.01


def test_the_gram_matrix_does_not_depend_on_the_size_of_the_image():
    features = torch.randn(1, 3, 4, 6)
    torch.testing.assert_close(gram_matrix(features.repeat(1, 1, 2, 3)), gram_matrix(features))


def test_total_variation():
    image = torch.zeros(1, 1, 2, 3)
    image[..., 2] = 1
    assert total_variation(image).item() == 0.5  # one of two horizontal differences, no vertical one


def test_training_lowers_the_loss(data, tmp_path):
    recipe = Recipe(steps=60, batch=2, crop=32, channels=4, draws=1)
    torch.manual_seed(0)
    before, _ = evaluate(build_network('in', recipe).eval(), data, 1)
    after, _ = evaluate(train('in', 0, data, recipe, tmp_path, untracked), data, 1)
    assert after.style < before.style / 2


@pytest.mark.parametrize('name', ['in', 'noise_asr_se'])
def test_an_interrupted_training_continues_to_the_same_weights(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr('mmasr.experiments.style_transfer._SAVE_EVERY', 2)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    whole.mkdir()
    parts.mkdir()
    expected = state_of(train(name, 1, data, RECIPE, whole, untracked))
    steps = []

    def interrupted(items, _):
        for step in items:
            if step == 3:
                raise KeyboardInterrupt
            yield step

    def recorded(items, _):
        steps.extend(items)
        return steps

    with pytest.raises(KeyboardInterrupt):
        train(name, 1, data, RECIPE, parts, interrupted)
    torch.rand(5)  # the caller's random numbers do not matter
    found = state_of(train(name, 1, data, RECIPE, parts, recorded))
    assert steps == [2, 3]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    steps.clear()
    again = state_of(train(name, 1, data, RECIPE, parts, recorded))
    assert steps == []
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_all_networks_get_the_same_crops(data, tmp_path, monkeypatch):
    seen = {}

    def record(name):
        def forward(self, pictures, photographs):
            seen.setdefault(name, []).append(photographs)
            return original(self, pictures, photographs)

        return forward

    original = PerceptualLoss.__call__
    for name in ('in', 'noise'):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(PerceptualLoss, '__call__', record(name))
        train(name, 0, data, RECIPE, tmp_path / name, untracked)
    assert all(torch.equal(a, b) for a, b in zip(seen['in'], seen['noise'], strict=True))
    assert not torch.equal(seen['in'][0], seen['in'][1])


def test_evaluation_averages_over_draws_that_are_the_same_in_every_call(data):
    network = build_network('noise', RECIPE).eval()
    state = torch.get_rng_state()
    first, pictures = evaluate(network, data, 2)
    again, _ = evaluate(network, data, 2)
    single, _ = evaluate(network, data, 1)
    assert first == again != single
    assert torch.equal(torch.get_rng_state(), state)
    assert [picture.shape for picture in pictures] == [(3, 32, 40)] * 2


def test_the_folded_network_draws_the_same_pictures(data, tmp_path):
    ((run, _),) = run_experiment(['noise_asr_se'], 1, data, tmp_path, RECIPE)
    plain = sum(parameter.numel() for parameter in build_network('noise', RECIPE).parameters())
    assert run.folded.parameters == plain < run.parameters
    # One more rounding per layer in float32, on values in [0, 1].
    assert run.folded.difference < 1e-5
    assert run.folded.losses.style == pytest.approx(run.losses.style, rel=1e-4)
    assert run.folded.losses.content == pytest.approx(run.losses.content, rel=1e-4)


def test_runs_are_ordered_by_seed_and_differ(data, tmp_path):
    runs = [run for run, _ in run_experiment(['in', 'bn'], 2, data, tmp_path, RECIPE)]
    assert [(run.network, run.seed) for run in runs] == [('in', 0), ('bn', 0), ('in', 1), ('bn', 1)]
    assert len({run.losses.style for run in runs}) == 4
    assert [run.folded for run in runs] == [None] * 4


@pytest.mark.parametrize(
    ('recipe', 'message'),
    [
        (Recipe(crop=34), '`crop` 34: must be a multiple of 4'),
        (Recipe(crop=64), '`crop` 64: larger than a photograph, whose shorter side is 40'),
        (Recipe(steps=0), '`steps` 0: must be greater than 0'),
    ],
)
def test_unusable_recipes_are_rejected(recipe, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        next(run_experiment(['in'], 1, data, tmp_path, recipe))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('sites', 'message'),
    [
        ('bn', '`sites` bn: no normalization has such a name; there are down.0.norm, '),
        ('(', 'is not a regular'),
    ],
)
@pytest.mark.parametrize('name', ['noise_half', 'noise_asr_se'])
def test_unknown_sites_are_rejected(name, sites, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, Recipe(sites=sites))


def test_all_normalizations_can_be_sites():
    network = build_network('noise_asr_se', Recipe(channels=4, sites=r'.*norm\d?'))
    assert sum(isinstance(module, mmasr.ASR) for module in network.modules()) == 15


def test_a_nan_loss_stops_the_training(tmp_path):
    torch.manual_seed(0)
    features = Maps().requires_grad_(False)
    nn.init.constant_(features.convs[0].bias, float('nan'))
    data = Data([draw_style(40)], [draw_style(40)], draw_style(32), features)
    with pytest.raises(ValueError, match='instance norm, seed 0: the loss is nan in step 0'):
        train('in', 0, data, RECIPE, tmp_path, untracked)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_other_settings_or_images_is_not_replaced(data, tmp_path):
    train('in', 0, data, RECIPE, tmp_path, untracked)
    before = (tmp_path / 'checkpoint.pth').read_bytes()
    other = Data(data.train, data.held_out, draw_style(32, 5), data.features)
    for args, differing in (
        ((data, Recipe(**{**RECIPE.__dict__, 'lr': 1e-3})), 'lr'),
        ((other, RECIPE), 'images or weights of the features'),
    ):
        with pytest.raises(ValueError, match=f'another value of: {differing}; choose another `out`'):
            train('in', 0, *args, tmp_path, untracked)
    assert (tmp_path / 'checkpoint.pth').read_bytes() == before


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """Return a folder with photographs and random weights of both feature extractors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('style')
    (folder / 'photographs').mkdir()
    for number in range(3):
        pixels = draw_style(48, number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f'photographs/{number}.png')
    lite0 = timm.create_model('tf_efficientnet_lite0').state_dict()
    torch.save(
        {'state_dict': {f'backbone.timm_model.{k}': v for k, v in lite0.items()}}, folder / 'lite0.pth'
    )
    torch.save(lite0, folder / 'timm.pth')
    vgg = make_layers(cfgs['D']).state_dict()
    torch.save({f'features.{key}': value for key, value in vgg.items()}, folder / 'vgg16.pth')
    (folder / 'text.pth').write_text('no weights')
    torch.save([1, 2], folder / 'list.pth')
    wide = {f'features.{key}': value.repeat_interleave(2, 0) for key, value in vgg.items()}
    torch.save(wide, folder / 'wide.pth')
    return folder


@pytest.mark.parametrize('file', ['lite0.pth', 'timm.pth'])
def test_features_of_efficientnet_lite0(file, workplace):
    features = load_features('efficientnet_lite0', workplace / file)
    images = torch.rand(1, 3, 64, 64)
    found = features(images)
    assert [one.shape[1:] for one in found] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    network = timm.create_model('tf_efficientnet_lite0').eval()
    network.load_state_dict(torch.load(workplace / 'timm.pth', weights_only=True))
    expected = network.forward_intermediates(2 * images - 1, indices=(0, 1, 2, 3), intermediates_only=True)
    torch.testing.assert_close(found, expected)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_features_of_vgg16(workplace):
    features = load_features('vgg16', workplace / 'vgg16.pth')
    network = make_layers(cfgs['D'])
    network.load_state_dict(
        {
            key.removeprefix('features.'): value
            for key, value in torch.load(workplace / 'vgg16.pth', weights_only=True).items()
        }
    )
    images = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for found, layers in zip(features(images), (4, 9, 16, 23), strict=True):
        torch.testing.assert_close(found, network[:layers]((images - mean) / std))


@pytest.mark.parametrize(
    ('name', 'file', 'message'),
    [
        ('resnet50', 'timm.pth', '`features` resnet50: unknown; choose from efficientnet_lite0, vgg16'),
        ('vgg16', 'none.pth', 'none.pth: no such file'),
        ('vgg16', 'text.pth', "text.pth: can't be read as weights"),
        ('vgg16', 'list.pth', 'list.pth: not the weights of vgg16, but a list'),
        ('vgg16', 'wide.pth', r'not the weights of vgg16; features\.0\.weight is missing or has another'),
        ('vgg16', 'timm.pth', r'timm.pth: not the weights of vgg16; features\.0\.weight is missing'),
        ('efficientnet_lite0', 'vgg16.pth', 'not the weights of efficientnet_lite0; conv_stem.weight is'),
    ],
)
def test_unusable_features_are_rejected(name, file, message, workplace):
    with pytest.raises(ValueError, match=message):
        load_features(name, workplace / file)


OPTIONS = ['--features', 'efficientnet_lite0', 'lite0.pth', '--size', 48, '--crop', 32, '--channels', 4]


def test_the_tool_writes_a_table_and_pictures(workplace):
    names = ['bn', 'noise_asr_se']
    options = ['--seeds', 2, '--steps', 2, '--networks', *names]
    result = run_tool('style_transfer.py', 'photographs', *OPTIONS, *options, cwd=workplace)
    assert result.returncode == 0, result.stderr
    out = workplace / 'work_dirs/style_transfer'
    found = json.loads((out / 'style_transfer.json').read_text())
    assert found['held_out'] == ['2.png']
    assert [(run['network'], run['seed']) for run in found['runs']] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    table = (out / 'style_transfer.md').read_text()
    assert table in result.stdout
    rows = table.splitlines()[2:]
    assert len(rows) == 3
    for name, row in zip(names, rows, strict=False):
        a, b = (run['losses']['style'] for run in found['runs'] if run['network'] == name)
        assert f'| {NETWORKS[name]} ' in row
        assert f' {(a + b) / 2:.3f} ± {abs(a - b) / 2**0.5:.3f} ' in row
    assert [cell.split('±')[0] for cell in rows[-1].split('|')[3:]] == [
        cell.split('±')[0] for cell in rows[-2].split('|')[3:]
    ]
    assert (out / 'style_transfer.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['none'], 'none: no such folder'),
        (['empty'], 'empty: has 0 images'),
        (['photographs', '--held-out', '9.png'], '--held-out 9.png: no such image'),
        (['photographs', '--style', 'none.png'], 'none.png: no such file'),
        (['photographs', '--style', 'text.pth'], "text.pth: can't be read as an image"),
        (['photographs', '--features', 'vgg19', 'vgg16.pth'], '--features vgg19: unknown'),
        (['photographs', '--seeds', 0], '--seeds 0: must be greater than 0'),
        (['photographs', '--crop', 52], '--crop 52: larger than a photograph'),
    ],
)
def test_unusable_arguments_are_rejected(args, message, workplace, tmp_path, refusal):
    (workplace / 'empty').mkdir(exist_ok=True)
    assert message in refusal(
        'style_transfer.py', *[args[0], *OPTIONS, *args[1:]], '--out', tmp_path / 'out', cwd=workplace
    )
    assert not (tmp_path / 'out').exists()


def test_an_unreadable_photograph_is_named(workplace, tmp_path, refusal):
    for name in ('a.png', 'b.jpg'):
        (tmp_path / name).write_bytes(b'\xff\xd8 not an image')
    assert "a.png: can't be read as an image" in refusal(
        'style_transfer.py', tmp_path, *OPTIONS, cwd=workplace
    )
