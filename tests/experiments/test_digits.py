"""The dataset of handwritten digits, written by tools/digits.py."""

import re

import cv2
import numpy as np
import pytest
from helpers import ROOT, run_tool
from sklearn.datasets import load_digits


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Return a folder with the digits where the configs expect them, and what the tool printed."""
    folder = tmp_path_factory.mktemp('digits')
    result = run_tool('digits.py', 'data/digits', cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_every_digit_is_written_once(digits):
    folder, printed = digits
    assert printed == 'data/digits: 300 training and 1497 validation images of 8 x 8 pixels\n'
    files = list(folder.rglob('*.png'))
    assert len(files) == len({path.name for path in files}) == 1797
    assert {path.parent.name for path in files} == set('0123456789')


def test_an_image_is_the_digit_of_scikit_learn(digits):
    folder, _ = digits
    path = min(folder.rglob('*.png'))
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    index = int(path.stem)
    original = load_digits()
    assert np.array_equal((image / 255 * 16).round(), original.images[index])  # 16 is white
    assert original.target[index] == int(path.parent.name)


def test_a_network_learns_the_digits(digits):
    folder, _ = digits
    schedule = ['train_cfg.max_epochs=6', 'train_cfg.val_interval=6']
    result = run_tool(
        'train.py', ROOT / 'configs/digits/resnet20_asr_se.py', '--cfg-options', *schedule, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(re.findall(r'accuracy/top1: ([\d.]+)', result.stdout + result.stderr)[-1])
    assert accuracy > 20  # of ten classes; a network that does not learn has 10


def test_a_file_instead_of_a_folder_is_rejected(tmp_path, refusal):
    (tmp_path / 'file').write_text('')
    assert refusal('digits.py', 'file', cwd=tmp_path) == "error: can't write to file: Not a directory"
