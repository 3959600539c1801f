"""The comparison of ways to remove attention, and tools/removal.py."""

import json

import pytest
from helpers import (
    classifier,
    plugin,
    randomize_norms,
    run_tool,
    save_network,
    with_images,
    write_image_config,
)

from mmasr.errors import InputError
from mmasr.experiments.removal import Comparison, Variant, draw_curves

pytestmark = pytest.mark.xdist_group('removal')


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """Return a folder in which the tool compared a network with three attention modules, and its output."""
    folder = tmp_path_factory.mktemp('removal')
    write_image_config(folder)
    attention = {**plugin('SE', 'after_conv2'), 'stages': (True, False, False)}
    backbone = {'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'plugins': [attention]}
    save_network(
        folder / 'network.pth', with_images(classifier(backbone, 64), folder / 'data'), randomize_norms
    )
    options = ['--images', 8, '--distill', 1, '--curves', '--rounds', 2, '--out', 'out']
    result = run_tool('removal.py', 'network.pth', *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.fixture
def comparison(compared):
    (found,) = json.loads((compared[0] / 'out/removal.json').read_text())
    return found


def test_all_ways_remove_everything(comparison):
    assert comparison['modules'] == 3
    removed = {name: variant['removed'] for name, variant in comparison['variants'].items()}
    assert removed.pop('default') <= 3
    assert removed == {'trained': 0, 'means': 3, 'energy': 3, 'constants': 3, 'weights': 3}


def test_the_curves_lead_from_the_trained_network_to_the_one_without_attention(comparison):
    for name, curve in comparison['curves'].items():
        assert [variant['removed'] for variant in curve] == [0, 1, 2, 3]
        assert curve[0] == comparison['variants']['trained']
        assert curve[3] == comparison['variants'][name]


def test_the_latency_is_that_of_both_runtimes_and_batches(comparison):
    names = [f'{runtime}, batch {number}' for number in (1, 8) for runtime in ('torch', 'ONNX Runtime')]
    assert list(comparison['latency']) == names
    assert all(0 < low <= middle <= high for low, middle, high in comparison['latency'].values())


def test_the_tool_prints_and_draws_it(compared, comparison):
    folder, printed = compared
    (row,) = [line for line in printed.splitlines() if line.startswith('| network.pth ') and '%' in line]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    expected = [f'{variant["value"]:.4g}' for variant in comparison['variants'].values()]
    assert cells[:8] == ['network.pth', '3', *expected]
    assert (folder / 'out/removal.png').read_bytes().startswith(b'\x89PNG')


def test_the_figure_has_a_line_for_each_curve():
    curves = {
        name: [Variant(count, 70.0 - loss * count, 0.0) for count in range(3)]
        for name, loss in (('means', 2), ('constants', 1))
    }
    latency = {'torch, batch 1': [0.8, 0.9, 1.0]}
    left, right = draw_curves(
        [Comparison('a.pth', 'top1', 2, {'trained': Variant(0, 70.0, 0.0)}, curves, latency)]
    ).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines[:2]}
    assert lines == {'mean values': [70, 68, 66], 'distilled constants': [70, 69, 68]}
    assert [bar.get_width() for bar in right.patches] == [0.9]


def test_curves_without_latency_are_refused_before_anything_runs(tmp_path, refusal):
    assert refusal('removal.py', 'a.pth', '--curves', '--rounds', 0, cwd=tmp_path) == (
        'error: --curves draws the latency, too, and needs at least one of --rounds'
    )
    assert not list(tmp_path.iterdir())


def test_without_curves_there_is_no_figure():
    with pytest.raises(InputError, match='a comparison has no curves to draw'):
        draw_curves([Comparison('a.pth', 'top1', 2, {}, {}, {})])
