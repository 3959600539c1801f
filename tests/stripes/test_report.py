"""The files of a report."""

import dataclasses
import json
import re

import pytest
import torch

from mmasr.errors import InputError
from mmasr.stripes.report import FILES, check_folder, write_report

SCRIPT = '<script>alert(1)</script>'


@pytest.fixture(scope='module')
def report(make_stripes, tmp_path_factory):
    """Return the folder and the files of a report on two modules, one of which has HTML as its name."""
    folder = tmp_path_factory.mktemp('report') / 'new'
    modules = [make_stripes(name, torch.rand(4, 3)) for name in (SCRIPT, 'b')]
    return folder, write_report(folder, modules, {'config': '<b>&.py'}, chosen=['b'])


def test_a_report_returns_its_files_and_lists_its_modules(report):
    folder, paths = report
    assert [path.name for path in paths] == sorted(FILES, key=FILES.index)
    found = json.loads((folder / 'stripes.json').read_text())
    assert [m['name'] for m in found['modules']] == [SCRIPT, 'b']


def test_the_page_escapes_names(report):
    page = (report[0] / 'stripes.html').read_text()
    assert '<script>alert' not in page
    assert '&lt;script&gt;alert(1)' in page
    assert '&lt;b&gt;&amp;.py' in page


def test_the_page_needs_no_other_file_and_no_network(report):
    page = (report[0] / 'stripes.html').read_text()
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)|https?://|@import', page)


def test_the_page_does_not_mention_spatial_maps_if_there_are_none(report):
    assert 'spatial map' not in (report[0] / 'stripes.html').read_text()


def test_the_page_says_that_a_spatial_map_is_not_shown(tmp_path, make_stripes):
    cbam = dataclasses.replace(make_stripes('c', torch.rand(4, 3)), spatial=True)
    write_report(tmp_path / 'cbam', [cbam], {'config': 'x'}, chosen=['not run'])
    page = (tmp_path / 'cbam/stripes.html').read_text()
    assert 'c: only the channel values are shown, without the spatial map' in page


def test_a_report_that_cannot_be_written_leaves_everything_unchanged(tmp_path, make_stripes):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match="can't write here"):
        write_report(tmp_path / 'file', [make_stripes('a', torch.rand(4, 3))], {'config': 'x'})
    assert (tmp_path / 'file').read_text() == ''


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file is not a folder'):
        check_folder(tmp_path / 'file', force=True)
