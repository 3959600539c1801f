"""Figures that several pages show are those of docs/figures.yml, and the pictures show the tables."""

import re
import runpy

import pytest
import yaml
from helpers import ROOT

ENTRIES = yaml.load((ROOT / 'docs/figures.yml').read_text(), yaml.BaseLoader)  # all values are text


class Figure(str):
    """A figure as the pages write it. It can be rounded."""

    def __format__(self, spec: str) -> str:
        if spec == 'percent':
            return f'{100 * (float(self) - 1):.0f}'
        return format(float(self), spec) if spec else str(self)


@pytest.mark.parametrize('entry', ENTRIES)
def test_the_pages_show_the_same_figures(entry):
    rows, pages = ENTRIES[entry]['rows'], ENTRIES[entry]['pages']
    assert len(pages) > 1
    for page, template in pages.items():
        text = ' '.join((ROOT / page).read_text().split())
        for row, values in rows.items():
            shown = template.format(*map(Figure, values), row=row)
            pattern = re.escape(shown).replace(r'\ \*\ ', '[^|]*').replace(r'\*', '[^|]*')
            assert re.search(pattern, text), f'{page}: {shown}'


def test_the_picture_of_the_method_is_the_one_that_its_script_draws():
    drawn = runpy.run_path(str(ROOT / 'docs/_figures/method.py'))['draw']()
    assert drawn == (ROOT / 'docs/method.svg').read_text()


@pytest.mark.parametrize(('draw', 'rows'), [('draw_cost', 11), ('draw_growth', 6)])
def test_the_pictures_of_the_benchmarks_show_every_row_of_their_tables(draw, rows):
    figure = runpy.run_path(str(ROOT / 'docs/_figures/benchmarks.py'))[draw]()
    assert [len(ax.containers) or len(ax.lines) for ax in figure.axes] == [rows] * 2
