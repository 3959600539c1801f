"""The content of the pictures. tests/test_plots.py tests their style."""

import pytest

from mmasr.experiments.benchmark.measure import Cost
from mmasr.experiments.benchmark.picture import draw_growth, draw_speed


def test_speed_has_a_panel_per_batch_size_and_a_color_per_attention(make_cost):
    costs = [make_cost('plain', 1), make_cost('SE', 2), make_cost('ASR(SE)', 1), make_cost('CBAM', 4)]
    figure = draw_speed({8: costs, 16: costs}, ['SE', 'CBAM'], 'some network')
    assert [ax.get_title() for ax in figure.axes] == ['some network, batch 8', 'some network, batch 16']
    for ax, plain in zip(figure.axes, (40, 80), strict=True):  # images per second
        points = [(bar.lines[0].get_xydata().tolist(), bar.lines[0].get_color()) for bar in ax.containers]
        assert points == [
            ([[plain, 2]], 'black'),
            ([[plain / 2, 4]], 'C0'),
            ([[plain, 2]], 'C0'),
            ([[plain / 4, 8]], 'C1'),
        ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['plain', 'κ', 'ASR(κ)', 'κ = SE', 'κ = CBAM']


def test_growth_shows_the_cost_beyond_the_plain_network():
    def cost(name, seconds, size):
        return Cost(name, 1, 1, seconds, [1, 1, 1], None, seconds, [1, 1, 1], size)

    results = {
        side: [
            cost('plain', [1, 1.2], 2**20),
            cost('A', [9, 9], 2**20 + side * 2**20),
            cost('A, deployed', [1 + side / 1e3, 1.2 + side / 1e3], 0),
            cost('B', [1 + side / 1e2, 1.2 + side / 1e2], 3 * 2**20),
        ]
        for side in (128, 64)
    }
    time, memory = draw_growth(results, 2, 'title').axes
    lines = {line.get_label(): line for line in time.lines}
    guides = [f'{growth} in the number of positions' for growth in ('linear', 'quadratic')]
    assert list(lines) == ['A', 'B', *guides]
    assert lines['A'].get_xdata().tolist() == [64, 128]
    assert lines['A'].get_ydata() == pytest.approx([32, 64])  # the deployed form, in milliseconds per image
    assert lines['B'].get_ydata() == pytest.approx([320, 640])  # it has no deployed form
    assert memory.lines[0].get_ydata() == pytest.approx([32, 64])
    for ax in (time, memory):
        linear, quadratic = (line.get_ydata() for line in ax.lines[-2:])
        assert (linear[1] / linear[0], quadratic[1] / quadratic[0]) == pytest.approx((4, 16))
