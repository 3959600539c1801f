"""A training goes on with what is there, and says in a line why it can't."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import CLASSIFIER
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from mmasr.errors import InputError
from mmasr.openmmlab.checkpoint import only_data
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.training import ChannelsLastHook, ResumeHook, checkpoint_to_resume

STATE = {'meta': {'epoch': 1, 'iter': 2}, 'message_hub': {}, 'state_dict': {'weight': torch.zeros(1000)}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a training with two good checkpoints."""
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):
        torch.save(STATE, f'epoch_{epoch}.pth')
        os.utime(f'epoch_{epoch}.pth', (epoch, epoch))
    Path('last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


def kill_while_saving():
    content = Path('epoch_2.pth').read_bytes()
    Path('epoch_3.pth').write_bytes(content[: len(content) // 2])


def kill_while_noting():
    Path('last_checkpoint').write_text('')


def kill_before_noting():
    Path('last_checkpoint').write_text('epoch_1.pth')


def lose_the_note():
    Path('last_checkpoint').unlink()


def name_one_that_is_gone():
    Path('last_checkpoint').write_text('epoch_0.pth')


def save_a_best_one():
    torch.save(STATE, 'best_coco_bbox_mAP_epoch_1.pth')


def deploy_the_last():
    torch.save({'state_dict': STATE['state_dict'], 'meta': {}}, 'epoch_2_deploy.pth')


@pytest.mark.parametrize(
    'happens',
    [
        *(kill_while_saving, kill_while_noting, kill_before_noting, lose_the_note),
        *(name_one_that_is_gone, save_a_best_one, deploy_the_last),
    ],
)
def test_it_resumes_from_the_newest_that_is_whole(run, happens):
    happens()
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_2.pth'


def test_a_damaged_last_checkpoint_is_passed_over(run):
    Path('epoch_2.pth').write_bytes(b'')
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_1.pth'


def test_the_last_checkpoint_may_be_elsewhere(run):
    (run / 'work').mkdir()
    (run / 'work/last_checkpoint').write_text(str(run / 'epoch_1.pth'))
    assert checkpoint_to_resume('auto', 'work') == str(run / 'epoch_1.pth')


def test_nothing_to_resume_is_nothing(tmp_path):
    assert checkpoint_to_resume('auto', str(tmp_path / 'none')) is None


def test_weights_alone_are_not_resumed(run):
    deploy_the_last()
    with pytest.raises(InputError, match='no state of a training'):
        checkpoint_to_resume('epoch_2_deploy.pth', '.')


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with eight images in two classes, and a classifier's config."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in range(8):
        folder = Path('data', 'ab'[name % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{name}.png')
    text = CLASSIFIER.replace('data/shapes', 'data').replace(
        "'LoadImageFromFile')", "'LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)"
    )
    Path('config.py').write_text(text)
    return tmp_path


def options(*settings):
    return ['config.py', '--work-dir', 'work', '--cfg-options', *settings]


def test_a_loss_that_is_no_number_stops_the_training(data, refusal):
    line = refusal('train.py', *options('optim_wrapper.optimizer.lr=1e30', 'train_cfg.max_epochs=3'), cwd=data)
    assert 'the loss is nan in iteration' in line
    assert 'there is no good checkpoint yet' in line
    assert not list(Path('work').glob('*.pth'))


def test_it_names_the_last_good_checkpoint(data, refusal):
    Path('work').mkdir()
    torch.save(STATE, 'work/epoch_1.pth')
    torch.save({**STATE, 'state_dict': {'weight': torch.full((1000,), torch.nan)}}, 'work/epoch_2.pth')
    line = refusal('train.py', *options('optim_wrapper.optimizer.lr=1e30', 'train_cfg.max_epochs=3'), cwd=data)
    assert 'work/epoch_1.pth; ' in line


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named(data, refusal, workers):
    Path('data/a/4.png').write_bytes(b'no image')
    line = refusal('train.py', *options(f'train_dataloader.num_workers={workers}'), cwd=data)
    assert line.startswith("error: data/a/4.png can't be read as an image")
    assert '\n' not in line


def test_a_folder_without_images_is_said(data, refusal):
    Path('empty/a').mkdir(parents=True)
    assert 'Found 0 files' in refusal('train.py', *options('train_dataloader.dataset.data_root=empty'), cwd=data)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_testing_too(data, refusal, workers):
    Path('data/a/4.png').write_bytes(b'no image')
    torch.save(STATE, 'x.pth')
    line = refusal('test.py', 'config.py', 'x.pth', '--cfg-options', f'test_dataloader.num_workers={workers}', cwd=data)
    assert line.startswith("error: data/a/4.png can't be read as an image")
    assert '\n' not in line


def test_a_checkpoint_that_is_resumed_deletes_nothing_but_former_best_ones(data):
    """mmengine removes what a checkpoint says is the best one, be it a folder, when it saves a better one."""
    trained('work', **{'train_cfg.max_epochs': 1})
    lost = [data / 'work/thesis', data / 'work/best_a/thesis', data / 'best_thesis', data / 'work/epoch_1.pth']
    for path in lost[:3]:
        path.mkdir(parents=True)
    own = data / 'work/best_accuracy_top1_epoch_1.pth'
    own.touch()
    for path in (*lost, own):
        checkpoint = torch.load('work/epoch_1.pth', weights_only=False)
        checkpoint['message_hub']['runtime_info'].update(best_ckpt=str(path), best_score=-1)
        torch.save(checkpoint, 'work/resumed.pth')
        runner = Runner.from_cfg(validated('work', max_epochs=2, load_from='work/resumed.pth'))
        runner.register_hook(ResumeHook())
        runner.train()
    assert all(path.exists() for path in lost)
    assert not own.exists()
    assert list(Path('work').glob('best_*_epoch_2.pth'))


HUB = {
    'a number': ('val/loss', 0.5, True, True),
    'a history': ('stripes', {'epochs': [1], 'values': {'se': [torch.zeros(2)]}}, True, True),
    'the best score': ('best_score', 0.4, True, True),
    'the best one': ('best_ckpt', 'work/best_a.pth', True, False),
    'the best one of two': ('best_ckpt_a', 'work/best_a.pth', True, False),
    'another file': ('best_ckpt', 'work/epoch_1.pth', False, False),
    'a file elsewhere': ('best_ckpt', 'elsewhere/best_a.pth', False, False),
    'numbers of checkpoints': ('keep_ckpt_ids', [1, 2], True, False),
    'a config, which is executed one day': ('cfg', 'raise SystemExit', False, False),
    'control characters': ('val/x', '\x1b]0;x\x07', False, False),
    'a name of control characters': ('\x1b]0;x\x07', 1, False, False),
}


@pytest.mark.parametrize('inside', [True, False], ids=['of this training', 'of another'])
@pytest.mark.parametrize('case', HUB)
def test_what_a_checkpoint_says_beside_weights_is_kept_only_if_it_does_nothing_else(case, inside):
    name, value, own, others = HUB[case]
    runner = SimpleNamespace(work_dir='work', _load_from='work/epoch_2.pth' if inside else 'other/epoch_2.pth')
    checkpoint = {'message_hub': {'log_scalars': {}, 'runtime_info': {name: value}, 'resumed_keys': {name: True}}}
    ResumeHook().after_load_checkpoint(runner, checkpoint)
    assert (name in checkpoint['message_hub']['runtime_info']) == (own if inside else others)


@pytest.mark.parametrize('hub', [3, [], HistoryBuffer(), {'runtime_info': 3}])
def test_a_message_hub_of_another_kind_says_nothing(hub):
    checkpoint = {'message_hub': hub}
    ResumeHook().after_load_checkpoint(SimpleNamespace(work_dir='work', _load_from='work/a.pth'), checkpoint)
    assert checkpoint['message_hub'] == {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}


def validated(work_dir, max_epochs, load_from):
    """The config of a training that is resumed and keeps the best checkpoint."""
    config = Config.fromfile('config.py')
    hooks = {'checkpoint': {'type': 'CheckpointHook', 'save_best': 'auto'}}
    settings = {'work_dir': work_dir, 'train_cfg.max_epochs': max_epochs, 'load_from': load_from, 'resume': True}
    config.merge_from_dict({**settings, 'default_hooks': hooks})
    return config


@only_data()
def trained(name, **changes):
    config = Config.fromfile('config.py')
    config.merge_from_dict({'work_dir': name, 'train_dataloader.num_workers': 1, 'randomness': {'seed': 3}, **changes})
    config.pop('val_dataloader'), config.pop('val_cfg'), config.pop('val_evaluator')
    runner = Runner.from_cfg(config)
    runner.train()
    return {key: tensor.clone() for key, tensor in runner.model.state_dict().items()}


@HOOKS.register_module()
class Formats(Hook):
    """Whether the input of every step, and a convolution's weight then, are laid out as channels_last."""

    found: ClassVar = []

    def before_train(self, runner):
        runner.model.backbone.register_forward_pre_hook(lambda _, args: self.look(args[0]))
        runner.model.backbone.layer1[0].conv1.register_forward_pre_hook(lambda layer, args: self.look(layer.weight))

    def look(self, tensor):
        self.found.append(tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous())


def test_channels_last_trains_the_same_network(data):
    standing = {'optim_wrapper.optimizer.lr': 0}  # so that the order of sums moves BatchNorm's statistics only
    plain = trained('plain', **standing)
    with_hook = trained('hook', **standing, custom_hooks=[{'type': 'mmasr.ChannelsLastHook'}, {'type': 'Formats'}])
    assert Formats.found == [True] * 4
    torch.testing.assert_close(with_hook, plain, rtol=1e-4, atol=1e-5)  # 17 layers of float32
    expected, weights = (torch.load(f'{name}/epoch_1.pth', weights_only=False)['state_dict'] for name in ('plain', 'hook'))
    assert all(weight.is_contiguous() for weight in weights.values())
    assert weights._metadata == expected._metadata


def test_channels_last_is_refused_where_mmcvs_operators_would_misread_it():
    features = torch.randn(1, 2, 8, 8)
    align, boxes = RoIAlign(2, sampling_ratio=1), torch.tensor([[0.0, 1, 1, 6, 6]])
    misread = align(features.contiguous(memory_format=torch.channels_last), boxes)
    assert not torch.allclose(misread, align(features, boxes))  # or the refusal has lost its reason
    with pytest.raises(InputError, match=r'^ChannelsLastHook: 0 \(RoIAlign\) would read such tensors wrongly'):
        ChannelsLastHook().before_train(SimpleNamespace(model=nn.Sequential(align)))


def test_with_random_augmentation_a_resumed_training_equals_an_uninterrupted_one(data):
    """As docs/training.md says: the workers of a dataloader start every epoch with the same seeds."""
    two_epochs = {'train_cfg.max_epochs': 2, 'model.backbone.convs': {'type': 'OREPA'}}
    whole = trained('whole', **two_epochs)
    trained('halves', **{**two_epochs, 'train_cfg.max_epochs': 1})
    resumed = trained('halves', **two_epochs, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = trained('other', **two_epochs, **{'randomness.seed': 4})
    assert not torch.equal(whole['head.fc.weight'], other['head.fc.weight'])


ANNOTATIONS = {
    'images': [{'id': 1, 'file_name': 'a.jpg'}, {'id': 2, 'file_name': 'deep/b.jpg'}],
    'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}],
    'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
}


def check_coco(folder, classes=('cat', 'dog'), **changes):
    for name in ('a.jpg', 'deep/b.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / 'a.json').write_text(json.dumps({**ANNOTATIONS, **changes}))
    dataset = {'type': 'CocoDataset', 'data_root': f'{folder}/', 'ann_file': 'a.json', 'metainfo': {'classes': classes}}
    check_data(Config({'default_scope': 'mmdet', 'train_dataloader': {'dataset': dataset}}), 'train_dataloader')


def test_whole_annotations_pass(tmp_path, capsys):
    check_coco(tmp_path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': []}, 'has no images'),
        ({'annotations': []}, 'has no annotations'),
        ({'classes': ('cat', 'dgo')}, r'no category dgo, which metainfo\.classes names; it has cat, dog'),
        ({'images': [*ANNOTATIONS['images'], {'id': 3, 'file_name': 'c.jpg'}]}, r'1 of the 3 images .*: c\.jpg'),
        ({'categories': None}, 'is no COCO annotation file'),
    ],
    ids=['no images', 'no annotations', 'a typing error', 'a missing image', 'no categories'],
)
def test_what_is_wrong_with_annotations_is_said(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        check_coco(tmp_path, **changes)


def test_categories_that_are_not_used_are_said(tmp_path, capsys):
    check_coco(tmp_path, classes=('cat',))
    assert 'boxes of dog are not used' in capsys.readouterr().err
