"""Checks of the data that a config names, with unusual and wrong configs."""

import json
from pathlib import Path

import pytest
import torch
from helpers import write_image_config
from mmdet.datasets import CocoDataset
from mmengine.config import Config, ConfigDict

from mmasr.errors import InputError
from mmasr.openmmlab.data_sources import check_data

ANNOTATIONS = {
    'images': [{'id': 1, 'file_name': 'a.jpg'}],
    'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}],
    'categories': [{'id': 1, 'name': 'cat'}],
}


@pytest.fixture
def check(tmp_path):
    """Return a function that checks a COCO dataset whose config and annotations are changed."""

    def run(annotations=None, **changes):
        (tmp_path / 'a.jpg').touch()
        (tmp_path / 'a.json').write_text(json.dumps({**ANNOTATIONS, **(annotations or {})}))
        dataset = {'type': 'CocoDataset', 'data_root': str(tmp_path), 'ann_file': 'a.json', **changes}
        dataset.setdefault('metainfo', {'classes': ('cat',)})
        config = Config({'default_scope': 'mmdet'})
        config.train_dataloader = ConfigDict(dataset=dataset)
        check_data(config, 'train_dataloader')

    return run


@pytest.mark.parametrize('kind', ['CocoDataset', 'mmdet.CocoDataset', CocoDataset])
def test_a_missing_category_is_found_for_a_name_and_for_a_class(check, kind):
    with pytest.raises(InputError, match=r'no category dog, which metainfo\.classes lists; it has cat'):
        check(type=kind, metainfo={'classes': ('cat', 'dog')})


def test_a_missing_dataset_given_as_a_class_is_reported_with_its_source(check):
    with pytest.raises(InputError, match=r'none\.json does not exist; .*\n  COCO 2017: download'):
        check(type=CocoDataset, ann_file='none.json')


@pytest.mark.parametrize(
    'metainfo', [{'classes': 'classes.txt'}, 'cat', None], ids=['a file', 'a text', 'none']
)
def test_classes_in_a_file_are_not_checked(check, metainfo):
    """mmengine reads the file. Without classes, those of COCO apply."""
    categories = [{'id': 1, 'name': name} for name in CocoDataset.METAINFO['classes']]
    check({'categories': categories}, metainfo=metainfo)


def test_names_that_are_not_texts_are_reported(check):
    categories = [{'id': 1, 'name': 1}, {'id': 2, 'name': 'cat'}]
    check({'categories': categories}, metainfo={'classes': (1, 'cat')})
    with pytest.raises(InputError, match=r'no category 2, which metainfo\.classes lists; it has 1, cat'):
        check({'categories': categories}, metainfo={'classes': (2, 'cat')})
    with pytest.raises(InputError, match=r'1 of the 1 images of .* are not in .*: 5'):
        check({'images': [{'id': 1, 'file_name': 5}]})


@pytest.mark.parametrize(
    'annotations', [{'images': None}, {'images': ['a.jpg']}, {'annotations': 3}, {'categories': [{}]}]
)
def test_malformed_annotations_are_an_error_of_one_line(check, annotations):
    with pytest.raises(InputError, match=r'^[^\n]*a\.json is not a COCO annotation file: [^\n]*$'):
        check(annotations)


def test_the_data_root_must_be_a_path(check):
    with pytest.raises(InputError, match='data_root of CocoDataset must be the path of a folder, not 3'):
        check(data_root=3)


def test_a_prefix_may_be_a_text(check, tmp_path):
    check(data_prefix=str(tmp_path))
    with pytest.raises(InputError, match='none does not exist'):
        check(data_prefix='none')


@pytest.mark.parametrize('kind', ['NoSuchDataset', 3, None])
def test_paths_of_an_unknown_type_are_checked(check, kind):
    check(type=kind)
    with pytest.raises(InputError, match='none does not exist'):
        check(type=kind, data_root='none', ann_file='')


@pytest.mark.parametrize('loader', [None, 3, 'data', [], {'dataset': None}, {'dataset': 3}])
def test_a_loader_without_a_dataset_has_nothing_to_check(loader):
    check_data(Config({'train_dataloader': loader}), 'train_dataloader')


WHOLE = {
    'images': [{'id': 1, 'file_name': 'a.jpg'}, {'id': 2, 'file_name': 'deep/b.jpg'}],
    'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}],
    'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
}


@pytest.fixture
def check_whole(check, tmp_path):
    """Return a function that checks two images, one in a subfolder, after changes of their annotations."""
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep/b.jpg').touch()

    def run(classes=('cat', 'dog'), **changes):
        check({**WHOLE, **changes}, metainfo={'classes': classes})

    return run


def test_complete_annotations_pass(check_whole, capsys):
    check_whole()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': []}, 'has no images'),
        ({'annotations': []}, 'has no annotations'),
        ({'classes': ('cat', 'dgo')}, r'no category dgo, which metainfo\.classes lists; it has cat, dog'),
        (
            {'images': [*WHOLE['images'], {'id': 3, 'file_name': 'c.jpg'}]},
            r'1 of the 3 images .*: c\.jpg',
        ),
        ({'categories': None}, 'is not a COCO annotation file'),
    ],
    ids=['no images', 'no annotations', 'a typing error', 'a missing image', 'no categories'],
)
def test_errors_in_annotations_are_reported(check_whole, changes, message):
    with pytest.raises(InputError, match=message):
        check_whole(**changes)


def test_categories_that_are_not_classes_are_reported(check_whole, capsys):
    check_whole(classes=('cat',))
    assert 'boxes of dog are ignored' in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a folder with a small classification dataset and a config."""
    monkeypatch.chdir(tmp_path)
    write_image_config(tmp_path)
    return tmp_path


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named_in_training(folder, refusal, workers):
    Path('data/a/4.png').write_bytes(b'no image')
    options = ['--work-dir', 'work', '--cfg-options', f'train_dataloader.num_workers={workers}']
    line = refusal('train.py', 'config.py', *options, cwd=folder)
    assert line.startswith("error: data/a/4.png can't be read as an image")
    assert '\n' not in line


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named_in_testing(folder, refusal, workers):
    Path('data/a/4.png').write_bytes(b'no image')
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'meta': {}}, 'x.pth')
    options = ['--cfg-options', f'test_dataloader.num_workers={workers}']
    line = refusal('test.py', 'config.py', 'x.pth', *options, cwd=folder)
    assert line.startswith("error: data/a/4.png can't be read as an image")
    assert '\n' not in line


def test_a_folder_without_images_is_reported(folder, refusal):
    Path('empty/a').mkdir(parents=True)
    options = ['--work-dir', 'work', '--cfg-options', 'train_dataloader.dataset.data_root=empty']
    assert 'Found 0 files' in refusal('train.py', 'config.py', *options, cwd=folder)
