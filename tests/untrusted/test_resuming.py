"""Resuming a training: which checkpoint it starts from, and what a checkpoint can make it do."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import train, write_image_config
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mmasr.errors import InputError
from mmasr.untrusted.resuming import ResumeHook, checkpoint_to_resume, last_finite_checkpoint

STATE = {'meta': {'epoch': 1, 'iter': 2}, 'message_hub': {}, 'state_dict': {'weight': torch.zeros(1000)}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return the folder of a training with two good checkpoints."""
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):
        torch.save(STATE, f'epoch_{epoch}.pth')
        os.utime(f'epoch_{epoch}.pth', (epoch, epoch))
    Path('last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


def kill_while_saving():
    content = Path('epoch_2.pth').read_bytes()
    Path('epoch_3.pth').write_bytes(content[: len(content) // 2])


def kill_while_writing_last_checkpoint():
    Path('last_checkpoint').write_text('')


def kill_before_writing_last_checkpoint():
    Path('last_checkpoint').write_text('epoch_1.pth')


def lose_last_checkpoint():
    Path('last_checkpoint').unlink()


def delete_the_named_checkpoint():
    Path('last_checkpoint').write_text('epoch_0.pth')


def save_a_best_checkpoint():
    torch.save(STATE, 'best_coco_bbox_mAP_epoch_1.pth')


def deploy_the_last_checkpoint():
    torch.save({'state_dict': STATE['state_dict'], 'meta': {}}, 'epoch_2_deploy.pth')


@pytest.mark.parametrize(
    'event',
    [
        *(kill_while_saving, kill_while_writing_last_checkpoint, kill_before_writing_last_checkpoint),
        *(lose_last_checkpoint, delete_the_named_checkpoint, save_a_best_checkpoint),
        deploy_the_last_checkpoint,
    ],
)
def test_auto_resumes_from_the_newest_intact_checkpoint(run, event):
    event()
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_2.pth'


def test_auto_skips_a_damaged_last_checkpoint(run, capsys):
    Path('epoch_2.pth').write_bytes(b'')
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_1.pth'
    assert 'skipped: ' in capsys.readouterr().out


def test_the_order_is_that_of_the_epochs_and_not_of_the_times_of_the_files(run):
    torch.save(STATE, 'epoch_10.pth')
    os.utime('epoch_10.pth', (0, 0))  # as after copying the folder
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_10.pth'


def test_auto_skips_weights_that_are_not_finite(run):
    torch.save({**STATE, 'state_dict': {'weight': torch.tensor([torch.nan])}}, 'epoch_2.pth')
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_1.pth'


@pytest.mark.parametrize('content', [b'\xff\xfe', b'\0', b'gone.pth'])
def test_a_last_checkpoint_that_names_no_file_is_ignored(run, content):
    Path('last_checkpoint').write_bytes(content)
    assert Path(checkpoint_to_resume('auto', str(run))).name == 'epoch_2.pth'


def test_the_last_checkpoint_may_be_in_another_folder(run):
    (run / 'work').mkdir()
    (run / 'work/last_checkpoint').write_text(str(run / 'epoch_1.pth'))
    assert checkpoint_to_resume('auto', 'work') == str(run / 'epoch_1.pth')


def test_auto_without_checkpoints_starts_a_new_training(tmp_path):
    assert checkpoint_to_resume('auto', str(tmp_path / 'none')) is None


def test_a_given_checkpoint_is_returned(run):
    assert checkpoint_to_resume('epoch_1.pth', '.') == 'epoch_1.pth'


def test_an_address_is_returned_unread():
    """mmengine loads it, and :func:`mmasr.untrusted.data_only` reads it as data."""
    assert checkpoint_to_resume('https://example.com/a.pth', '.') == 'https://example.com/a.pth'


def test_weights_alone_are_not_resumed(run):
    deploy_the_last_checkpoint()
    message = (
        r'contains only weights, not the state of a training; to start from them: `cfg_options` load_from='
    )
    with pytest.raises(InputError, match=message):
        checkpoint_to_resume('epoch_2_deploy.pth', '.')


def test_the_last_finite_checkpoint_is_found(run):
    assert last_finite_checkpoint(run).name == 'epoch_2.pth'
    torch.save({**STATE, 'state_dict': {'weight': torch.tensor([0, torch.nan])}}, 'epoch_2.pth')
    assert last_finite_checkpoint(run).name == 'epoch_1.pth'
    torch.save({**STATE, 'state_dict': {'weight': torch.tensor([0, torch.inf])}}, 'epoch_1.pth')
    assert last_finite_checkpoint(run) is None


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Change to a folder with a small classification dataset and a config."""
    monkeypatch.chdir(tmp_path)
    write_image_config(tmp_path)
    return tmp_path


def test_a_resumed_checkpoint_deletes_nothing_but_former_best_ones(data):
    """mmengine deletes the path of a checkpoint's ``best_ckpt`` when it saves a better one."""
    train('work', **{'train_cfg.max_epochs': 1})
    kept = [
        data / 'work/thesis',
        data / 'work/best_a/thesis',
        data / 'best_thesis',
        data / 'work/epoch_1.pth',
    ]
    for path in kept[:3]:
        path.mkdir(parents=True)
    own = data / 'work/best_accuracy_top1_epoch_1.pth'
    own.touch()
    for path in (*kept, own):
        checkpoint = torch.load('work/epoch_1.pth', weights_only=False)
        checkpoint['message_hub']['runtime_info'].update(best_ckpt=str(path), best_score=-1)
        torch.save(checkpoint, 'work/resumed.pth')
        runner = Runner.from_cfg(resumed_config('work', max_epochs=2, load_from='work/resumed.pth'))
        runner.register_hook(ResumeHook())
        runner.train()
    assert all(path.exists() for path in kept)
    assert not own.exists()
    assert list(Path('work').glob('best_*_epoch_2.pth'))


def resumed_config(work_dir, max_epochs, load_from):
    """Return the config of a training that is resumed and keeps the best checkpoint."""
    config = Config.fromfile('config.py')
    hooks = {'checkpoint': {'type': 'CheckpointHook', 'save_best': 'auto'}}
    settings = {
        'work_dir': work_dir,
        'train_cfg.max_epochs': max_epochs,
        'load_from': load_from,
        'resume': True,
    }
    config.merge_from_dict({**settings, 'default_hooks': hooks})
    return config


#: Name and value of an entry of the message hub; whether it is kept from this training, and from another one.
HUB = {
    'a number': ('val/loss', 0.5, True, True),
    'a history': ('stripes', {'epochs': [1], 'values': {'se': [torch.zeros(2)]}}, True, True),
    'the best score': ('best_score', 0.4, True, True),
    'the best checkpoint': ('best_ckpt', 'work/best_a.pth', True, False),
    'the best checkpoint of two': ('best_ckpt_a', 'work/best_a.pth', True, False),
    'another file': ('best_ckpt', 'work/epoch_1.pth', False, False),
    'a file in another folder': ('best_ckpt', 'elsewhere/best_a.pth', False, False),
    'numbers of checkpoints': ('keep_ckpt_ids', [1, 2], True, False),
    'a config, which would be executed later': ('cfg', 'raise SystemExit', False, False),
    'control characters': ('val/x', '\x1b]0;x\x07', False, False),
    'a name with control characters': ('\x1b]0;x\x07', 1, False, False),
}


@pytest.mark.parametrize('inside', [True, False], ids=['of this training', 'of another'])
@pytest.mark.parametrize('case', HUB)
def test_only_harmless_entries_of_the_message_hub_are_kept(case, inside):
    name, value, own, others = HUB[case]
    runner = SimpleNamespace(
        work_dir='work', _load_from='work/epoch_2.pth' if inside else 'other/epoch_2.pth'
    )
    checkpoint = {
        'message_hub': {'log_scalars': {}, 'runtime_info': {name: value}, 'resumed_keys': {name: True}}
    }
    ResumeHook().after_load_checkpoint(runner, checkpoint)
    assert (name in checkpoint['message_hub']['runtime_info']) == (own if inside else others)


@pytest.mark.parametrize('hub', [3, [], HistoryBuffer(), {'runtime_info': 3}])
def test_a_message_hub_of_another_type_becomes_empty(hub):
    checkpoint = {'message_hub': hub}
    ResumeHook().after_load_checkpoint(SimpleNamespace(work_dir='work', _load_from='work/a.pth'), checkpoint)
    assert checkpoint['message_hub'] == {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}


def nested(levels):
    """Return lists in lists."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


def shared(levels):
    """Return lists with 3**levels items, which take a few bytes per level in the file."""
    value = []
    for _ in range(levels):
        value = [value, value, value]
    return value


ITSELF = []
ITSELF.append(ITSELF)
ENDLESS = {'itself': ITSELF, 'deep': nested(100_000), 'shared': shared(45)}


@pytest.mark.parametrize('name', ENDLESS)
@pytest.mark.parametrize('part', ['optimizer', 'param_schedulers', 'message_hub'])
def test_an_endless_state_is_refused(part, name):
    runner = SimpleNamespace(work_dir='work', _load_from='work/a.pth')
    with pytest.raises(
        InputError, match=rf'^work/a\.pth: {part} contains itself, is nested more than 50 levels'
    ):
        ResumeHook().after_load_checkpoint(runner, {part: {'state': {0: ENDLESS[name]}}})


@pytest.mark.parametrize('states', [[{}], [None], 3, {'a': [{'last_step': 'x'}]}, {'a': None}])
def test_a_missing_state_of_a_scheduler_is_refused(states):
    runner = SimpleNamespace(work_dir='work', _load_from='work/a.pth')
    with pytest.raises(InputError, match=r'a\.pth: the state of a learning rate scheduler .* is missing'):
        ResumeHook().after_load_checkpoint(runner, {'param_schedulers': states})


@pytest.mark.usefixtures('data')
def test_a_resumed_training_with_random_augmentation_equals_an_uninterrupted_one():
    """As docs/training.md says: the workers of a dataloader start every epoch with the same seeds."""
    two_epochs = {'train_cfg.max_epochs': 2, 'model.backbone.convs': {'type': 'OREPA'}}
    whole = train('whole', **two_epochs)
    train('halves', **{**two_epochs, 'train_cfg.max_epochs': 1})
    resumed = train('halves', **two_epochs, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = train('other', **two_epochs, **{'randomness.seed': 4})
    assert not torch.equal(whole['head.fc.weight'], other['head.fc.weight'])
