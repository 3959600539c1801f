import os

# Two processes run the tests, so each of them, and each tool that it starts, uses one thread. torch reads
# this variable when it is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import torch

# mmengine formats configs with yapf, which writes a grammar cache on its first import: do that before there
# are two processes.
import yapf  # noqa: F401
from helpers import ROOT, SE_CONFIG, SHAPES_CONFIG, run_tool
from mmengine.visualization import Visualizer


def pytest_addoption(parser):
    parser.addoption(
        '--photographs',
        metavar='FOLDER',
        help='dataset data/fruits of docs/own-data.md, for tests/tools/test_fruits.py',
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Group the tests that share the shapes, so that one process runs them all, and start with the groups.

    Groups come first, because a process that starts one late would keep the other waiting at the end.
    """
    items.sort(
        key=lambda item: ('shapes' not in item.fixturenames, item.get_closest_marker('xdist_group') is None)
    )
    for item in items:
        if 'shapes' in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group('shapes'))


def pytest_collection_finish():
    """Prepare each worker once its tests are collected; the controlling process does not need it."""
    importlib.import_module('preloaded')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_visualizers_of_deleted_folders():
    """Drop visualizers of former tests, whose folders are gone.

    mmengine shares a visualizer among runners of one name, by default the second in which they are built.
    """
    for kind in (Visualizer, *Visualizer.__subclasses__()):
        for name, visualizer in list(kind._instance_dict.items()):
            if not all(Path(backend._save_dir).exists() for backend in visualizer._vis_backends.values()):
                del kind._instance_dict[name]


@pytest.fixture
def process_group():
    """Provide a process group of this process alone, which mmcv's SyncBatchNorm needs."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def refusal(monkeypatch):
    """Return a function that runs a tool in this process, which is faster, and returns its error line."""

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
    """Provide a working folder with a small shapes dataset where the configs expect it."""
    folder = tmp_path_factory.mktemp('shapes')
    result = run_tool('shapes.py', 'data/shapes', '--train', 16, '--val', 4, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='session')
def checkpoint(shapes):
    """Provide a checkpoint after two epochs, the second resumed, with EMA and gradient accumulation."""
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
    """Provide config and checkpoint of a network with ordinary attention, trained with a StripeHook."""
    config = shapes / 'se.py'
    config.write_text(
        f"_base_ = {str(SE_CONFIG)!r}\ncustom_hooks = [dict(type='mmasr.StripeHook', images=3)]\n"
    )
    options = ['train_dataloader.batch_size=8', 'default_hooks.checkpoint.interval=1']
    schedule = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    result = run_tool(
        'train.py', config, '--work-dir', 'se', '--cfg-options', *options, *schedule, cwd=shapes
    )
    assert result.returncode == 0, result.stderr
    return config, shapes / 'se/epoch_2.pth'


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """Return the file that importing the module attacker_module creates."""
    proof = tmp_path / 'proof'
    (tmp_path / 'attacker_module.py').write_text(f'open({str(proof)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    yield proof
    sys.modules.pop('attacker_module', None)
