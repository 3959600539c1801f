"""Deployed files are written completely, or not at all."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import full_disk

from mmasr.deploy.saving import write_checkpoint
from mmasr.errors import InputError
from mmasr.files import temporary_files


@pytest.fixture
def targets(tmp_path):
    """Return two files to write, of which the first one exists."""
    targets = tmp_path / 'a.pth', tmp_path / 'a.py'
    targets[0].write_text('before')
    return targets


def write(targets, error=None):
    with temporary_files(*targets) as files:
        for file in files:
            file.write_text('after')
        if error:
            raise error


def test_after_an_error_no_file_is_moved_into_place(targets, tmp_path):
    with pytest.raises(KeyError):
        write(targets, KeyError)
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']
    assert targets[0].read_text() == 'before'


def test_files_are_moved_into_place_together(targets, tmp_path):
    write(targets)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'a.py']
    assert targets[0].read_text() == 'after'


def save_zeros(target):
    with temporary_files(target) as (file,):
        write_checkpoint({'state_dict': {'x': torch.zeros(100_000)}}, file)


def test_a_full_disk_is_an_input_error_and_leaves_no_file(tmp_path):
    with (
        full_disk(10_000),
        pytest.raises(InputError, match=r"can't write here: File too large; nothing was changed"),
    ):
        save_zeros(tmp_path / 'a.pth')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a folder that not even root can write to')
def test_a_read_only_folder_is_an_input_error():
    with pytest.raises(
        InputError, match=r"/sys: can't write here: (Permission denied|Operation not permitted)"
    ):
        save_zeros(Path('/sys/a.pth'))
