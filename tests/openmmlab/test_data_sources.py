"""Checks of the data that a config names, with unusual and wrong configs."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import write_image_config
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.config import Config, ConfigDict
from PIL import Image

from mmasr.errors import InputError
from mmasr.openmmlab.building import build_model
from mmasr.openmmlab.data_sources import check_data, name_images

ANNOTATIONS = {
    'images': [{'id': 1, 'file_name': 'a.jpg', 'width': 8, 'height': 8}],
    'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4], 'area': 16}],
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


@pytest.mark.parametrize('metainfo', ['cat', None])
def test_without_classes_those_of_coco_apply(check, metainfo):
    categories = [{'id': 1, 'name': name} for name in CocoDataset.METAINFO['classes']]
    check({'categories': categories}, metainfo=metainfo)


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


def test_classes_in_a_file_are_those_of_its_lines(check, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('cat\n')
    check(metainfo={'classes': str(names)})
    names.write_text('cat\ndog\n')
    with pytest.raises(InputError, match='no category dog'):
        check(metainfo={'classes': str(names)})


def test_a_text_in_place_of_a_sequence_of_classes_is_refused(check):
    with pytest.raises(InputError, match=r"classes of CocoDataset is 'cat', .*classes=\('cat',\)"):
        check(metainfo={'classes': 'cat'})


def test_a_class_with_a_tab_is_refused(check):
    categories = [{'id': 1, 'name': 'a\tcat'}]
    with pytest.raises(InputError, match=r"metainfo\.classes: the class 'a\\tcat' has a tab"):
        check({'categories': categories}, metainfo={'classes': ('a\tcat',)})


@pytest.mark.parametrize('filter_cfg', [None, {'filter_empty_gt': False}])
def test_images_for_semi_supervised_training_need_no_annotations(check, filter_cfg):
    check({'annotations': []}, filter_cfg=filter_cfg)


def test_a_dataset_that_drops_unlabeled_images_needs_annotations(check):
    with pytest.raises(InputError, match='has no annotations'):
        check({'annotations': []}, filter_cfg={'filter_empty_gt': True})


def test_masks_are_checked_where_they_are_loaded(check):
    check()
    loader = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}
    with pytest.raises(InputError, match='its segmentation is missing'):
        check(pipeline=[{'type': 'LoadImageFromFile'}, loader])


class Elsewhere(CocoDataset):
    """Reads its annotations from somewhere else."""

    def load_data_list(self):
        return []


class Renamed(CocoDataset):
    """Reads what CocoDataset reads."""

    METAINFO: ClassVar = {'classes': ('cat',)}


class OwnLoader(LoadImageFromFile):
    """Reads images from somewhere else."""

    def transform(self, results):
        return results


def test_a_custom_dataset_is_judged_only_if_it_reads_as_its_base_class(check):
    check(type=Elsewhere, ann_file='table:train', data_prefix={'img': 'bucket:'})
    check(type=Renamed, metainfo=None)
    with pytest.raises(InputError, match='none does not exist'):
        check(type=Renamed, data_prefix={'img': 'none'})


@pytest.mark.parametrize(
    'transform',
    [
        {'type': 'LoadImageFromFile', 'backend_args': {'backend': 'lmdb', 'db_path': 'images.lmdb'}},
        {'type': OwnLoader},
    ],
)
def test_images_that_are_not_read_from_files_are_not_looked_for(check, transform):
    check(data_prefix={'img': 'remote:'}, pipeline=[transform])
    with pytest.raises(InputError, match=r'none\.json does not exist'):  # its annotations are local
        check(data_prefix={'img': 'remote:'}, pipeline=[transform], ann_file='none.json')


def test_local_images_are_looked_for_where_the_backend_says_so(check):
    transform = {'type': 'LoadImageFromFile', 'backend_args': {'backend': 'local'}}
    with pytest.raises(InputError, match='none does not exist'):
        check(data_prefix={'img': 'none'}, pipeline=[transform])


def test_annotations_that_are_read_elsewhere_are_not_looked_for(check):
    check(ann_file='none.json', backend_args={'backend': 'petrel'})


def test_an_image_that_its_orientation_rotates_is_named(tmp_path):
    """Its boxes would be misplaced silently."""
    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new('RGB', (6, 4)).save(path, exif=exif)
    content = {**ANNOTATIONS, 'images': [{'id': 1, 'file_name': str(path), 'width': 6, 'height': 4}]}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    for options in ({}, {'color_type': 'color_ignore_orientation'}):
        dataset = CocoDataset(
            ann_file=str(tmp_path / 'a.json'),
            metainfo={'classes': ('cat',)},
            data_prefix={'img': ''},
            pipeline=[LoadImageFromFile(**options)],
        )
        name_images(dataset)
        if options:
            assert dataset[0]['img'].shape == (4, 6, 3)
            continue
        with pytest.raises(InputError, match=r'a\.jpg is 4 x 6 pixels, .* width 6 and height 4: .*EXIF'):
            dataset[0]


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
    weights = build_model(Config.fromfile('config.py')).state_dict()
    torch.save({'state_dict': weights, 'meta': {}}, 'x.pth')
    options = ['--cfg-options', f'test_dataloader.num_workers={workers}']
    line = refusal('test.py', 'config.py', 'x.pth', *options, cwd=folder)
    assert line.startswith("error: data/a/4.png can't be read as an image")
    assert '\n' not in line


def test_a_folder_without_images_is_reported(folder, refusal):
    Path('empty/a').mkdir(parents=True)
    options = ['--work-dir', 'work', '--cfg-options', 'train_dataloader.dataset.data_root=empty']
    assert 'Found 0 files' in refusal('train.py', 'config.py', *options, cwd=folder)
