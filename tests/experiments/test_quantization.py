"""The comparison of networks in int8, and tools/quantization.py."""

import json

import pytest
import torch
from helpers import classifier, randomize_norms, run_tool, save_network, with_images, write_image_config

import mmasr
from mmasr.errors import InputError
from mmasr.experiments.quantization import Comparison, draw_ranges

pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.xdist_group('quantization')  # one process, so that the tool runs only once


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """Return a folder, the networks that the tool compared in it, and its output."""
    folder = tmp_path_factory.mktemp('quantization')
    write_image_config(folder)
    networks = {}
    for name, convs in (('plain', None), ('repvgg', {'type': 'RepVGG'})):
        backbone = {'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'convs': convs}
        config = with_images(classifier(backbone, 64), folder / 'data')
        networks[name] = save_network(folder / f'{name}.pth', config, randomize_norms)
    options = ['--calibrate', 8, '--rounds', 2, '--out', 'out']
    result = run_tool('quantization.py', 'plain.pth', 'repvgg.pth', *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, networks, result.stdout


@pytest.fixture
def comparisons(compared):
    found = json.loads((compared[0] / 'out/quantization.json').read_text())
    return {entry['checkpoint'].removesuffix('.pth'): entry for entry in found}


@pytest.mark.parametrize(
    ('checkpoints', 'titles'),
    [
        (['runs/plain/0/epoch_3.pth', 'runs/se/0/epoch_3.pth'], ['plain', 'se']),
        (['a/plain.pth', 'a/se.pth'], ['plain', 'se']),
        (['a/plain.pth'], ['plain']),
    ],
)
def test_the_panels_are_named_after_what_differs_in_the_paths(checkpoints, titles):
    entry = {'metric': 'm', 'values': {}, 'latency': [], 'trained': {'a': [1.0]}, 'folded': {'a': [1.0]}}
    figure = draw_ranges([Comparison(checkpoint=checkpoint, **entry) for checkpoint in checkpoints])
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == titles


def test_each_network_is_measured_in_all_forms(comparisons):
    for entry in comparisons.values():
        assert entry['metric'] == 'accuracy/top1'
        assert list(entry['values']) == ['float', 'int8', 'per tensor']
        assert all(0 <= value <= 100 for value in entry['values'].values())
        low, middle, high = entry['latency']
        assert 0 < low <= middle <= high


def test_the_ranges_are_those_of_the_trained_and_of_the_folded_weights(compared, comparisons):
    networks = compared[1]
    conv = networks['plain'].backbone.layer1[0].conv1
    norm = networks['plain'].backbone.layer1[0].bn1
    name = 'backbone.layer1.0.conv1'
    trained = conv.weight.detach().abs().flatten(1).amax(1)
    scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    plain = comparisons['plain']
    assert len(plain['folded']) == 21
    torch.testing.assert_close(torch.tensor(plain['trained'][name]), trained)
    torch.testing.assert_close(torch.tensor(plain['folded'][name]), trained * scale, rtol=1e-5, atol=1e-6)
    branches = networks['repvgg'].backbone.layer1[0].conv1
    trained = branches.get_submodule(branches.main_weight).weight.clone()  # folding writes there
    merged = mmasr.fold(networks['repvgg'].eval()).backbone.layer1[0]
    scale = merged.bn1.weight / (merged.bn1.running_var + merged.bn1.eps).sqrt()
    folded = merged.conv1.weight * scale.view(-1, 1, 1, 1)
    for ranges, weight in (
        (comparisons['repvgg']['trained'], trained),
        (comparisons['repvgg']['folded'], folded),
    ):
        expected = weight.detach().abs().flatten(1).amax(1)
        torch.testing.assert_close(torch.tensor(ranges[name]), expected, rtol=1e-5, atol=1e-6)


def test_the_tool_prints_a_table_and_writes_the_figure(compared):
    folder, _, printed = compared
    assert '| checkpoint | float' in printed
    assert '| repvgg.pth |' in printed
    assert (folder / 'out/quantization.png').stat().st_size > 10_000


def test_the_figure_has_a_panel_for_each_network(comparisons):
    figure = draw_ranges([Comparison(**entry) for entry in comparisons.values()])
    titles = [ax.get_title() for ax in figure.axes if ax.get_visible()]
    assert titles == ['plain', 'repvgg']
    median, smallest = figure.axes[0].get_lines()[2:]
    ranges = [torch.tensor(values) for values in comparisons['plain']['folded'].values()]
    assert list(median.get_ydata()) == pytest.approx([(r / r.max()).median().item() for r in ranges], rel=0.2)
    assert list(smallest.get_ydata()) == pytest.approx([(r / r.max()).min().item() for r in ranges])


def test_a_network_without_convolutions_has_no_figure(comparisons):
    with pytest.raises(InputError, match='a network has no convolution'):
        draw_ranges([Comparison(**{**comparisons['plain'], 'folded': {}})])
