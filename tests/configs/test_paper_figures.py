"""The figures that the pages quote agree with the papers."""

import re
from itertools import chain

import pytest
from helpers import ROOT
from paper_figures import ASR, OREPA_IMAGENET, OREPA_NETWORKS, OREPA_NORMALIZATION, X_VOLUTION

CONFIGS = (ROOT / 'configs/README.md').read_text()
EXPERIMENTS = (ROOT / 'docs/experiments.md').read_text()


def figures(text):
    return re.findall(r'\d+\.\d+', text)


def rows(page):
    """Return the figures of every row of every table, without those in its first cell."""
    lines = (line.partition('|')[2].partition('|')[2] for line in page.splitlines() if line.startswith('|'))
    return {tuple(figures(line)) for line in lines}


@pytest.mark.parametrize('table', ['2', '3', '4', '6', '7 and 14', '8', '9', '13'])
def test_every_row_of_a_table_is_quoted_completely(table):
    expected = {tuple(row.split()) for row in ASR[table]}
    assert len(expected) > 1
    assert expected <= rows(EXPERIMENTS) | rows(CONFIGS)


@pytest.mark.parametrize('network', OREPA_NETWORKS)
def test_orepas_detectors_and_segmentors_are_quoted_completely(network):
    quoted = {tuple(figures(line)) for line in CONFIGS.splitlines()}
    assert tuple(OREPA_NETWORKS[network].split()) in quoted


def test_the_results_quote_only_figures_of_the_papers():
    """All figures in columns with the mark *(paper)*; Table 5 is in configs/README.md."""
    copied = [*chain(*ASR.values()), *OREPA_IMAGENET, *OREPA_NORMALIZATION, *OREPA_NETWORKS.values()]
    papers = {*figures(CONFIGS), *X_VOLUTION}.union(*map(str.split, copied))
    cells = []
    for table in re.findall(r'(?:^\|.*\n)+', (ROOT / 'docs/results.md').read_text(), re.M):
        head, _, *lines = ([cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines())
        assert all(len(line) == len(head) for line in lines)
        cells += [
            line[place]
            for place, title in enumerate(head)
            if '*(paper)*' in title
            for line in lines
            if line[place]
        ]
    assert len(cells) > 40
    assert [figure for cell in cells for figure in figures(cell) if figure not in papers] == []
