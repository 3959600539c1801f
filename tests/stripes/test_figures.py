"""The content of the pictures. tests/test_plots.py tests their style."""

import numpy as np
import pytest
import torch

from mmasr.stripes.figures import choose_evenly, draw_changes, draw_deviations, draw_stripes


def test_stripes_are_drawn_unchanged_and_on_one_color_scale(make_stripes):
    v, pooled = torch.rand(6, 5).double(), torch.randn(6, 5).double()
    figure = draw_stripes([make_stripes('first', v, pooled), make_stripes('second', v)])
    before, after = (ax.images[0] for ax in figure.axes[:2])
    assert np.array_equal(before.get_array(), pooled)
    assert np.array_equal(after.get_array(), v)
    assert before.get_clim() == after.get_clim()
    assert before.get_clim()[0] == pytest.approx(torch.cat([v, pooled]).quantile(0.01).item())


def test_deviations_are_drawn_in_percent_of_the_channels(make_stripes):
    v, pooled = torch.rand(6, 5).double(), torch.randn(6, 5).double()
    figure = draw_deviations([make_stripes('a', v, pooled)])
    heights = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == pytest.approx(200)  # 100 % before and after


def test_changes_are_drawn_as_one_line_per_channel_and_their_median():
    changes = torch.rand(4, 3, 20)
    figure = draw_changes({'a': changes, 'b': changes}, [2, 3, 4, 5])
    first, second = figure.axes
    assert [ax.get_title(loc='left') for ax in (first, second)] == ['a', 'b']
    channels = changes.mean(1)
    assert len(first.lines) == 21
    assert np.array_equal(first.lines[7].get_ydata(), channels[:, 7])
    assert np.array_equal(first.lines[20].get_ydata(), channels.median(1).values)
    assert first.lines[7].get_xdata().tolist() == [2, 3, 4, 5]
    assert first.get_ylim()[1] > channels.max()


@pytest.mark.parametrize('draw', [draw_stripes, draw_deviations])
def test_constant_values_can_be_drawn(draw, make_stripes):
    draw([make_stripes('a', torch.ones(2, 3))]).canvas.draw()


def test_all_of_a_few_names_are_chosen():
    assert choose_evenly(list('abc')) == ['a', 'b', 'c']


def test_the_first_and_the_last_name_are_chosen():
    assert choose_evenly([str(i) for i in range(16)]) == ['0', '5', '10', '15']
