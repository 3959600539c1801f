"""The figures that the pages quote are those of the papers, where these are at hand."""

import re

import pytest
from helpers import ROOT

FIGURES = ROOT.parent / 'shared/paper.md'
PAGES = [ROOT / 'docs/experiments.md', ROOT / 'configs/README.md']


def rows(text):
    """The accuracies in every row of every table, without its first column; heads have smaller numbers."""
    lines = (line.partition('|')[2].partition('|')[2] for line in text.splitlines() if line.startswith('|'))
    found = (tuple(re.findall(r'\d+\.\d+', line)) for line in lines)
    return {numbers for numbers in found if len(numbers) > 1 and float(numbers[0]) > 1}


@pytest.mark.skipif(not FIGURES.is_file(), reason=f'the figures of the papers are not there: {FIGURES}')
@pytest.mark.parametrize('table', ['2', '3', '4', '6', '7 and 14', '8', '9', '13'])
def test_every_row_of_a_table_is_quoted_as_it_is(table):
    section = re.search(rf'^### Tables? {table}:.*?(?=^##)', FIGURES.read_text(), re.M | re.S)[0]
    quoted = set().union(*(rows(page.read_text()) for page in PAGES))
    expected = rows(section)
    assert len(expected) > 1
    assert expected <= quoted
