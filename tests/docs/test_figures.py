"""Figures that several pages show are the same everywhere: docs/figures.yml has them once."""

import re

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
