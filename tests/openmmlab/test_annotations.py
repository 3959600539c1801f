"""Errors in COCO annotations are one line that names the file, the image and the annotation."""

import json

import pytest

from mmasr.errors import InputError
from mmasr.openmmlab.annotations import check_annotations

BOX = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4], 'area': 16}
WHOLE = {
    'images': [
        {'id': 1, 'file_name': 'a.jpg', 'width': 8, 'height': 8},
        {'id': 2, 'file_name': 'deep/b.jpg', 'width': 8, 'height': 8},
    ],
    'annotations': [BOX],
    'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
}


@pytest.fixture
def check(tmp_path):
    """Return a function that checks two images, one in a subfolder, after changes of their annotations."""
    (tmp_path / 'deep').mkdir()
    for name in ('a.jpg', 'deep/b.jpg'):
        (tmp_path / name).touch()
    path = tmp_path / 'a.json'

    def run(classes=('cat', 'dog'), with_mask=False, needs_boxes=False, **changes):
        path.write_text(json.dumps({**WHOLE, **changes}))
        check_annotations(str(path), classes, str(tmp_path), with_mask=with_mask, needs_boxes=needs_boxes)

    return run


def test_complete_annotations_pass(check, capsys):
    check()
    check(classes=None)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': []}, 'has no images'),
        ({'needs_boxes': True, 'annotations': []}, 'has no annotations'),
        ({'classes': ('cat', 'dgo')}, r'no category dgo, which metainfo\.classes lists; it has cat, dog'),
        ({'images': [*WHOLE['images'], {'id': 3, 'file_name': 'c.jpg'}]}, r'1 of the 3 images .*: c\.jpg'),
    ],
    ids=['no images', 'no annotations', 'a typing error', 'a missing image'],
)
def test_errors_in_the_lists_are_reported(check, changes, message):
    with pytest.raises(InputError, match=message):
        check(**changes)


@pytest.mark.parametrize(
    'changes',
    [
        {'images': None},
        {'images': ['a.jpg']},
        {'annotations': 3},
        {'categories': None},
        {'categories': [{}]},
    ],
)
def test_anything_else_is_an_error_of_one_line(check, changes):
    with pytest.raises(InputError, match=r'^[^\n]*a\.json is not a COCO annotation file: [^\n]*$'):
        check(**changes)


def test_unlabeled_images_and_unused_categories_are_reported(check, capsys):
    check(classes=('cat',), annotations=[])
    printed = capsys.readouterr().err
    assert 'a.json: no annotations, so its images are unlabeled' in printed
    assert 'boxes of dog are ignored' in printed


def test_names_that_are_not_texts_are_reported(check):
    categories = [{'id': 1, 'name': 1}, {'id': 2, 'name': 'cat'}]
    check(categories=categories, classes=(1, 'cat'))
    with pytest.raises(InputError, match=r'no category 2, which metainfo\.classes lists; it has 1, cat'):
        check(categories=categories, classes=(2, 'cat'))
    with pytest.raises(InputError, match=r'1 of the 1 images of .* are not in .*: 5'):
        check(images=[{'id': 1, 'file_name': 5}])


def test_images_that_are_read_otherwise_are_not_looked_for(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(WHOLE))
    check_annotations(str(path), None, None, with_mask=False, needs_boxes=True)


def test_an_image_without_a_size_is_named(check):
    with pytest.raises(InputError, match=r'a\.json: the image a\.jpg has no width and height'):
        check(images=[{'id': 1, 'file_name': 'a.jpg', 'width': None, 'height': 8}])


@pytest.mark.parametrize('mask', [[], [1, 1, 4, 1, 4, 4], None, 'rle'])
def test_an_annotation_without_a_mask_is_named(check, mask):
    annotations = [{**BOX, 'id': 7, 'segmentation': mask}]
    check(annotations=annotations)
    with pytest.raises(InputError, match=r'a\.json: annotation 7 of the image a\.jpg: its segmentation is'):
        check(annotations=annotations, with_mask=True)


@pytest.mark.parametrize(
    'change',
    [
        {'segmentation': [[1, 1, 4, 1, 4, 4]]},
        {'segmentation': {'counts': 'x'}},
        # Annotations without a mask that MMDetection skips.
        {'ignore': 1},
        {'area': 0},
        {'bbox': [9, 9, 4, 4]},
        {'image_id': 9},
        {'category_id': 9},
    ],
)
def test_masks_and_annotations_that_are_skipped_pass(check, change):
    check(annotations=[{**BOX, **change}], with_mask=True)


@pytest.mark.parametrize('change', [{'bbox': [1, 2, 3]}, {'bbox': None}, {'area': None}])
def test_an_annotation_with_an_unusable_box_is_named(check, change):
    with pytest.raises(InputError, match=r'annotation 1 of the image a\.jpg: its (bbox|area) is not'):
        check(annotations=[{**BOX, **change}])
