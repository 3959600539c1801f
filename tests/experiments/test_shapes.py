"""The generated dataset of shapes."""

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmasr.experiments.shapes import write_shapes


def test_the_same_arguments_write_the_same_files(tmp_path):
    for folder in ('a', 'b'):
        write_shapes(tmp_path / folder, train=6, val=3)
    write_shapes(tmp_path / 'c', train=6, val=3, seed=1)
    names = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*') if p.is_file())
    assert len(names) == 2 + 2 * (6 + 3)
    assert all((tmp_path / 'a' / n).read_bytes() == (tmp_path / 'b' / n).read_bytes() for n in names)
    assert (tmp_path / 'a/train.json').read_bytes() != (tmp_path / 'c/train.json').read_bytes()


@pytest.fixture
def coco(tmp_path):
    """Return the training annotations of a small dataset, written to ``tmp_path``."""
    write_shapes(tmp_path, train=6, val=3)
    return COCO(tmp_path / 'train.json')


def test_the_annotations_are_valid_coco(coco):
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == ['circle', 'square', 'triangle']
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        y, x = np.nonzero(mask)
        left, top, width, height = annotation['bbox']
        # Masks and polygons differ only in pixels on the outline; the tip of a triangle has two or three of
        # them.
        assert abs(mask.sum() - annotation['area']) <= 2 * (width + height)
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(found - [left, top, left + width, top + height]).max() <= 2


def test_the_class_maps_agree_with_the_annotations(coco, tmp_path):
    for image in coco.imgs.values():
        found = cv2.imread(str(tmp_path / 'maps/train' / image['file_name']), cv2.IMREAD_UNCHANGED)
        expected = np.zeros((128, 128), np.uint8)
        for annotation in coco.imgToAnns[image['id']]:  # in the order in which they were drawn
            expected[coco.annToMask(annotation) > 0] = annotation['category_id']
        assert set(np.unique(found)) == set(np.unique(expected))
        assert (found != expected).mean() < 0.03  # COCO's masks and the map differ on the outlines


def test_an_interrupted_run_leaves_no_old_annotations(coco, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, 'imencode', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path, train=2, val=2)
    assert not list(tmp_path.glob('*.json'))
