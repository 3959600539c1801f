"""STL10, read from files in its published format."""

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mmasr.errors import InputError


def stl10(folder, **options):
    files = {'data_root': str(folder), 'ann_file': 'y.bin', 'data_prefix': {'images': 'X.bin'}}
    return DATASETS.build({'type': 'mmasr.STL10', **files, **options})


def test_images_and_labels_are_read(tmp_path):
    image = np.zeros((3, 96, 96), np.uint8)  # channel, column, row: the order of the authors
    image[0, 5, 7], image[2, 8, 9] = 200, 100
    np.stack([image, image + 1]).tofile(tmp_path / 'X.bin')
    np.array([10, 1], np.uint8).tofile(tmp_path / 'y.bin')
    dataset = stl10(tmp_path)
    assert len(dataset) == 2
    first, second = dataset.get_data_info(0), dataset.get_data_info(1)
    assert first['img'].shape == (96, 96, 3)
    assert first['img'][7, 5, 0] == 200
    assert first['img'][9, 8, 2] == 100
    assert first['img'].sum() == 300
    assert (dataset.CLASSES[first['gt_label']], dataset.CLASSES[second['gt_label']]) == ('truck', 'airplane')


def test_different_numbers_of_images_and_labels_are_an_error(tmp_path):
    np.zeros(3 * 96 * 96, np.uint8).tofile(tmp_path / 'X.bin')
    np.ones(2, np.uint8).tofile(tmp_path / 'y.bin')
    with pytest.raises(
        InputError, match=r'X\.bin does not hold one image of 3 × 96 × 96 bytes for each of the 2 labels'
    ):
        stl10(tmp_path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'data_prefix': {}}, 'STL10 needs ann_file'), ({'ann_file': 'z.bin'}, r"can't be read: .*z\.bin")],
    ids=['no images', 'a missing file'],
)
def test_missing_files_are_an_error(tmp_path, options, message):
    (tmp_path / 'X.bin').touch()
    with pytest.raises(InputError, match=message):
        stl10(tmp_path, **options)
