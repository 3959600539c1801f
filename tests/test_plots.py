"""The common style of all figures."""

import subprocess
import sys

import pytest
import torch

from mmasr.experiments.benchmark.measure import Cost
from mmasr.experiments.benchmark.picture import draw_speed
from mmasr.experiments.removal import Comparison, Variant, draw_curves
from mmasr.experiments.style_transfer import Data, draw_pictures
from mmasr.experiments.sweep import Run, draw_sweep
from mmasr.plots import TEXT
from mmasr.stripes import ChannelStatistics, Stripes
from mmasr.stripes.figures import draw_changes, draw_deviations, draw_stripes


def stripes(name='a'):
    v = torch.rand(4, 3).double()
    return Stripes(name, 'SE', ChannelStatistics.of(v), ChannelStatistics.of(v), torch.stack([v, v]), False)


FIGURES = {
    'stripes': lambda: draw_stripes([stripes()]),
    'deviations': lambda: draw_deviations([stripes()]),
    'changes': lambda: draw_changes({'a': torch.rand(4, 3, 20)}, [2, 3, 4, 5]),
    'pictures': lambda: draw_pictures(
        Data([], [torch.zeros(3, 8, 12)] * 2, torch.zeros(3, 8, 8), torch.nn.Identity()),
        {'a': [torch.rand(3, 8, 12)] * 2},
    ),
    'sweep': lambda: draw_sweep([Run('a', 0, {'accuracy': 90.0}, 'accuracy', 10)]),
    'removal': lambda: draw_curves(
        [
            Comparison(
                *('a.pth', 'accuracy', 1, {'trained': Variant(0, 90.0, 0.0)}),
                {'means': [Variant(0, 90.0, 0.0)], 'constants': [Variant(0, 90.0, 0.0)]},
                {'torch, batch 1': [0.8, 0.9, 1.0]},
            )
        ]
    ),
    'speed': lambda: draw_speed(
        {8: [Cost('plain', 10, 10, [1.0], [1.0] * 3, None, [1.0], [1.0] * 3, 1)]}, [], 'a'
    ),
}


@pytest.mark.parametrize('name', FIGURES)
def test_all_figures_have_the_same_style(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    assert figure.dpi == 300
    for ax in (ax for ax in figure.axes if ax.get_label() != '<colorbar>'):
        texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
        assert {text.get_fontsize() for text in texts if text.get_text()} == {TEXT}
        assert not ax.spines.top.get_visible()
        assert not ax.spines.right.get_visible()


def test_a_long_module_name_does_not_narrow_the_panels():
    widths = []
    for name in ('a', 'backbone.' * 6 + 'se'):
        figure = draw_stripes([stripes(name)])
        figure.canvas.draw()
        widths.append(figure.axes[0].get_position().width)
    assert widths[0] == pytest.approx(widths[1])


def test_matplotlib_is_imported_only_for_drawing():
    code = """
import sys
import mmasr.experiments.benchmark.picture, mmasr.experiments.style_transfer, mmasr.stripes.figures
assert 'matplotlib' not in sys.modules
mmasr.plots.panels(1, 1)
assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
