"""The tools as a user runs them."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from forked import run_python
from helpers import CLASSIFIER, ROOT, SHAPES_CONFIG, run_tool
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ('tool', 'args', 'split'), [('train.py', [], 'train'), ('test.py', ['x.pth'], 'val')]
)
def test_missing_data_is_reported_with_ways_to_get_it(tool, args, split, tmp_path, refusal):
    torch.save({'state_dict': {'x': torch.zeros(1)}}, tmp_path / 'x.pth')
    message = refusal(tool, ROOT / 'configs/mask_rcnn_r50_asr_se.py', *args, cwd=tmp_path)
    assert f'data/coco/annotations/instances_{split}2017.json does not exist' in message
    assert 'cocodataset.org' in message
    assert 'tools/shapes.py data/shapes' in message


def test_a_tool_that_fails_exits_with_status_1_and_without_a_traceback(tmp_path):
    result = run_tool('train.py', 'none.py', cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == 'error: none.py: no such config'
    assert 'Traceback' not in result.stderr
    assert f'{ROOT / "mmasr"}/' not in result.stderr  # and no warning about code of mmasr


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('train.py', ['none.py'], 'none.py: no such config'),
        ('train.py', [SHAPES_CONFIG, '--amp'], '--amp needs a GPU'),
        ('train.py', [SHAPES_CONFIG, '--auto-scale-lr'], 'auto_scale_lr.base_batch_size'),
        ('test.py', [SHAPES_CONFIG, 'none.pth'], 'none.pth: No such file or directory'),
        ('test.py', [SHAPES_CONFIG, 'none.pth', '--out', 'x.json'], 'name it *.pkl'),
        ('reparam.py', ['none.pth'], 'none.pth: No such file or directory'),
        ('export.py', ['none.pth'], 'none.pth: No such file or directory'),
    ],
)
def test_unusable_arguments_are_rejected_in_one_line(tmp_path, refusal, monkeypatch, tool, args, message):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert message in refusal(tool, *args, cwd=tmp_path)


def test_the_test_tool_evaluates_draws_and_stores_predictions(checkpoint, shapes):
    args = ['--work-dir', 'tested', '--out', 'tested/predictions.pkl', '--show-dir', 'drawn']
    result = run_tool('test.py', SHAPES_CONFIG, checkpoint, *args, cwd=shapes)
    assert result.returncode == 0, result.stderr
    (metrics,) = (shapes / 'tested').glob('*/*.json')
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= json.loads(metrics.read_text()).keys()
    assert (shapes / 'tested/predictions.pkl').stat().st_size > 0
    assert len(list((shapes / 'tested').rglob('drawn/*.png'))) == 4


# Runs a classifier with stock MMPretrain, in an interpreter that cannot import mmasr.
STOCK = """
import sys
sys.modules['mmasr'] = None
import numpy, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
config = Config.fromfile(sys.argv[1])
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
model.load_state_dict(torch.load(sys.argv[2], weights_only=True)['state_dict'], strict=True)
assert model.eval()(torch.zeros(1, 3, 64, 64)).isfinite().all()
"""


def test_a_trained_classifier_is_deployed_with_the_same_accuracy(shapes, tmp_path):
    config = tmp_path / 'classifier.py'
    config.write_text(CLASSIFIER)
    result = run_tool('train.py', config, '--work-dir', 'classifier', cwd=shapes)
    assert result.returncode == 0, result.stderr
    result = run_tool('reparam.py', 'classifier/epoch_1.pth', cwd=shapes)
    assert result.returncode == 0, result.stderr
    files = ['classifier/epoch_1_deploy.py', 'classifier/epoch_1_deploy.pth']
    stock = run_python(STOCK, *files, cwd=shapes)
    assert stock.returncode == 0, stock.stderr
    accuracy = []
    for pair in (('classifier/classifier.py', 'classifier/epoch_1.pth'), files):
        result = run_tool('test.py', *pair, '--work-dir', f'tested/{len(accuracy)}', cwd=shapes)
        assert result.returncode == 0, result.stderr
        (metrics,) = (shapes / f'tested/{len(accuracy)}').glob('*/*.json')
        accuracy.append(json.loads(metrics.read_text())['accuracy/top1'])
    assert accuracy[0] == accuracy[1]
    _check_safetensors(config, torch.load(shapes / files[1]), accuracy[0], shapes)


def _check_safetensors(config, deployed, accuracy, shapes):
    """Deploy, evaluate and continue from the trained weights of a classifier, saved as safetensors."""
    trained = torch.load(shapes / 'classifier/epoch_1.pth', weights_only=False)['state_dict']
    save_file(trained, shapes / 'classifier/weights.safetensors')
    weights = 'classifier/weights.safetensors'
    result = run_tool('reparam.py', weights, '--config', config, cwd=shapes)
    assert result.returncode == 0, result.stderr
    written = torch.load(shapes / 'classifier/weights_deploy.pth')['state_dict']
    assert written.keys() == deployed['state_dict'].keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in deployed['state_dict'].items())
    result = run_tool('test.py', config, weights, '--work-dir', 'tested/safetensors', cwd=shapes)
    assert result.returncode == 0, result.stderr
    (metrics,) = (shapes / 'tested/safetensors').glob('*/*.json')
    assert json.loads(metrics.read_text())['accuracy/top1'] == accuracy
    options = [
        '--work-dir',
        'continued',
        '--cfg-options',
        f'load_from={weights}',
        'optim_wrapper.optimizer.lr=0',
    ]
    result = run_tool('train.py', config, *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    continued = torch.load(shapes / 'continued/epoch_1.pth', weights_only=False)['state_dict']
    assert torch.equal(continued['head.fc.weight'], trained['head.fc.weight'])


def test_missing_data_of_a_classifier_is_reported(tmp_path, refusal):
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    options = ['--cfg-options', 'train_dataloader.dataset.data_root=nowhere']
    assert 'nowhere does not exist' in refusal('train.py', 'classifier.py', *options, cwd=tmp_path)


@pytest.mark.parametrize(
    ('name', 'arguments'), [('train', [SHAPES_CONFIG]), ('test', [SHAPES_CONFIG, 'epoch_1.pth'])]
)
def test_the_distributed_tools_start_with_torchrun(name, arguments, tmp_path):
    """mmengine's launchers need a GPU per process, so the tool fails on its arguments here."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'PORT': '29517'}
    command = [ROOT / f'tools/dist_{name}.sh', *arguments, '2', '--work-dir', 'out', '--no-such-option']
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert result.stderr.count(f'{name}.py: error: unrecognized arguments: --no-such-option\n') == 2


@pytest.mark.parametrize(
    ('name', 'arguments'), [('train', [SHAPES_CONFIG]), ('test', [SHAPES_CONFIG, 'epoch_1.pth'])]
)
def test_the_distributed_tools_without_a_number_of_gpus_print_their_usage(name, arguments):
    command = [ROOT / f'tools/dist_{name}.sh', *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('usage: ')


def test_the_script_for_a_gpu_runs_commands_that_the_tools_accept(tmp_path, monkeypatch):
    recorder = tmp_path / 'python'
    recorder.write_text('#!/bin/sh\necho "$@" >> commands\n')
    recorder.chmod(0o755)
    log = tmp_path / 'out/shapes/mask_rcnn_r18/0/1/1.log'
    log.parent.mkdir(parents=True)
    log.write_text('Epoch(train) [1][50/50] memory: 1\nEpoch(val) [1]\n')
    environment = {**os.environ, 'PYTHON': str(recorder)}
    script = ROOT / 'tools/benchmark_gpu.sh'
    result = subprocess.run(
        [script, 'out'], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('[50/50] memory: 1\n')
    commands = [line.split() for line in (tmp_path / 'commands').read_text().splitlines()]
    assert [Path(tool).name for tool, *_ in commands if 'benchmark.py' not in tool] == [
        'shapes.py',
        'sweep.py',
        '-m',
    ]
    for tool, *options in commands:
        if tool != '-m':
            monkeypatch.setattr('sys.argv', [tool, *options])
            runpy.run_path(tool)['parse_args']()
            assert all(Path(option).exists() for option in options if option.endswith('.py'))
            models = {
                option.removeprefix('torchvision:') for option in options if option.startswith('torchvision:')
            }
            assert models <= set(torchvision.models.list_models())


PAGE = (ROOT / 'tools/README.md').read_text()


@pytest.mark.parametrize(
    'tool', sorted(path.name for path in (ROOT / 'tools').iterdir() if path.suffix in ('.py', '.sh'))
)
def test_every_tool_has_an_example(tool):
    assert re.search(rf'^(python )?tools/{re.escape(tool)}\b', PAGE, re.M)


def test_the_configs_in_the_examples_exist():
    names = re.findall(r'configs/[\w/]+\.py', PAGE)
    assert names
    assert all((ROOT / name).is_file() for name in names)
