"""Data of the tests that calibrate and evaluate classifiers."""

import pytest
from helpers import write_image_config


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """Return a folder with eight images in two classes."""
    folder = tmp_path_factory.mktemp('images')
    write_image_config(folder)
    return folder / 'data'
