import os

# Two processes run the tests, so each takes one thread, as do the tools it starts; torch reads this when it is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import importlib
import runpy
from pathlib import Path

import pytest
import torch
import yapf  # noqa: F401  mmengine writes configs with it; it caches its grammar when it is first imported, so before there are two
from helpers import ROOT, SE_CONFIG, SHAPES_CONFIG, run_tool


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Leave all that works on the shapes and on what was trained on them to one of the two processes, and begin with it, then
    with what else one process must do, so that neither waits for the other in the end."""
    items.sort(key=lambda item: ('shapes' not in item.fixturenames, item.get_closest_marker('xdist_group') is None))
    for item in items:
        if 'shapes' in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group('shapes'))


def pytest_collection_finish():
    """In each of the two, with what is imported to collect the tests, and not in the one that hands them out."""
    importlib.import_module('preloaded')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def process_group():
    """A process group of this process alone, which mmcv's SyncBatchNorm asks for."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def refusal(monkeypatch):
    """Run a tool in this process, which is quicker, and return the line that it exits with."""

    def run(name: str, *args, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr('sys.argv', [name, *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        message = caught.value.code  # Python prints it and exits with 1
        assert isinstance(message, str)
        assert message.startswith('error: ')
        return message

    return run


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A folder to work in, with a small set of shapes where the configs look for it."""
    folder = tmp_path_factory.mktemp('shapes')
    result = run_tool('shapes.py', 'data/shapes', '--train', 16, '--val', 4, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='session')
def checkpoint(shapes):
    """What two epochs of training leave behind, the second resumed, with EMA and gradient accumulation."""
    options = [
        'train_dataloader.batch_size=4',
        'optim_wrapper.accumulative_counts=2',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.ema.type=EMAHook',
        'auto_scale_lr.base_batch_size=8',
    ]
    for epochs in (1, 2):
        schedule = [f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs}']
        settings = ['--work-dir', 'work', '--auto-scale-lr', '--resume', '--cfg-options', *options, *schedule]
        result = run_tool('train.py', SHAPES_CONFIG, *settings, cwd=shapes)
        assert result.returncode == 0, result.stderr
    assert 'Scaling the original LR by 0.5' in result.stdout + result.stderr
    assert 'resumed epoch: 1' in result.stdout + result.stderr
    return shapes / 'work/epoch_2.pth'


@pytest.fixture(scope='session')
def se_checkpoint(shapes):
    """A network with ordinary attention after two epochs, with its config, which has a StripeHook."""
    config = shapes / 'se.py'
    config.write_text(f"_base_ = {str(SE_CONFIG)!r}\ncustom_hooks = [dict(type='mmasr.StripeHook', images=3)]\n")
    options = ['train_dataloader.batch_size=8', 'default_hooks.checkpoint.interval=1']
    schedule = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    result = run_tool('train.py', config, '--work-dir', 'se', '--cfg-options', *options, *schedule, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return config, shapes / 'se/epoch_2.pth'
