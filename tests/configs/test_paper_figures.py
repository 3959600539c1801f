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


@pytest.mark.skipif(not FIGURES.is_file(), reason=f'the figures of the papers are not there: {FIGURES}')
def test_orepas_detectors_and_segmentors_are_quoted_as_they_are():
    text = FIGURES.read_text().partition('COCO (box AP) and Cityscapes')[2]
    table = re.search(r'(?:^\|.*\n)+', text, re.M)[0]
    networks, _, *kinds = ([cell.strip() for cell in line.split('|')[2:-1]] for line in table.splitlines())
    quoted = {tuple(re.findall(r'\d+\.\d+', line)) for line in PAGES[1].read_text().splitlines()}
    for column in range(len(networks)):
        assert tuple(cells[column].split(',')[0] for cells in kinds) in quoted


@pytest.mark.skipif(not FIGURES.is_file(), reason=f'the figures of the papers are not there: {FIGURES}')
def test_every_figure_in_a_papers_column_of_the_results_is_in_the_papers():
    papers = FIGURES.read_text() + PAGES[1].read_text()  # which has Table 5
    found = []
    for table in re.findall(r'(?:^\|.*\n)+', (ROOT / 'docs/results.md').read_text(), re.M):
        head, _, *lines = ([cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines())
        assert all(len(line) == len(head) for line in lines)
        found += [line[place] for place, title in enumerate(head) if '*(paper)*' in title for line in lines if line[place]]
    assert len(found) > 40
    missing = [figure for cell in found for figure in re.findall(r'\d+\.\d+', cell) if figure not in papers]
    assert not missing
