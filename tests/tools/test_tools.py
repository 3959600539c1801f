"""The tools as a user runs them."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from forked import run_python
from helpers import CLASSIFIER, ROOT, SHAPES_CONFIG, run_tool
from pycocotools.coco import COCO

from mmasr.experiments.shapes import write_shapes


def test_shapes_are_deterministic(tmp_path):
    for folder in ('a', 'b'):
        write_shapes(tmp_path / folder, train=6, val=3)
    write_shapes(tmp_path / 'c', train=6, val=3, seed=1)
    names = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*') if p.is_file())
    assert len(names) == 2 + 2 * (6 + 3)
    assert all((tmp_path / 'a' / n).read_bytes() == (tmp_path / 'b' / n).read_bytes() for n in names)
    assert (tmp_path / 'a/train.json').read_bytes() != (tmp_path / 'c/train.json').read_bytes()


def test_shapes_are_valid_coco(tmp_path):
    write_shapes(tmp_path, train=6, val=3)
    coco = COCO(tmp_path / 'train.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == ['circle', 'square', 'triangle']
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        y, x = np.nonzero(mask)
        left, top, width, height = annotation['bbox']
        # Rasters and polygons agree but for the pixels of the outline, of which the tip of a triangle has two or three.
        assert abs(mask.sum() - annotation['area']) <= 2 * (width + height)
        assert (
            np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - [left, top, left + width, top + height]).max() <= 2
        )


def test_maps_of_the_shapes_have_the_classes_of_the_annotations(tmp_path):
    write_shapes(tmp_path, train=6, val=3)
    coco = COCO(tmp_path / 'train.json')
    for image in coco.imgs.values():
        found = cv2.imread(str(tmp_path / 'maps/train' / image['file_name']), cv2.IMREAD_UNCHANGED)
        expected = np.zeros((128, 128), np.uint8)
        for annotation in coco.imgToAnns[image['id']]:  # in the order in which they were drawn
            expected[coco.annToMask(annotation) > 0] = annotation['category_id']
        assert set(np.unique(found)) == set(np.unique(expected))
        assert (found != expected).mean() < 0.03  # the outlines, which COCO's masks and the map draw otherwise


@pytest.mark.parametrize(('tool', 'args', 'split'), [('train.py', [], 'train'), ('test.py', ['x.pth'], 'val')])
def test_missing_data_is_named_with_the_ways_on(tool, args, split, tmp_path, refusal):
    torch.save({'state_dict': {'x': torch.zeros(1)}}, tmp_path / 'x.pth')
    message = refusal(tool, ROOT / 'configs/mask_rcnn_r50_asr_se.py', *args, cwd=tmp_path)
    assert f'data/coco/annotations/instances_{split}2017.json is not there' in message
    assert 'cocodataset.org' in message
    assert 'tools/shapes.py data/shapes' in message


def test_a_tool_exits_with_one_and_without_a_traceback(tmp_path):
    result = run_tool('train.py', 'none.py', cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == 'error: none.py: no such config'
    assert 'Traceback' not in result.stderr
    assert f'{ROOT / "mmasr"}/' not in result.stderr  # nor a warning about our own code


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
def test_bad_arguments_are_one_line(tmp_path, refusal, monkeypatch, tool, args, message):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert message in refusal(tool, *args, cwd=tmp_path)


def test_test_evaluates_draws_and_dumps(checkpoint, shapes):
    args = ['--work-dir', 'tested', '--out', 'tested/predictions.pkl', '--show-dir', 'drawn']
    result = run_tool('test.py', SHAPES_CONFIG, checkpoint, *args, cwd=shapes)
    assert result.returncode == 0, result.stderr
    (metrics,) = (shapes / 'tested').glob('*/*.json')
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= json.loads(metrics.read_text()).keys()
    assert (shapes / 'tested/predictions.pkl').stat().st_size > 0
    assert len(list((shapes / 'tested').rglob('drawn/*.png'))) == 4


# MMPretrain's side, in an interpreter where importing mmasr fails.
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


def test_a_classifier_trains_and_deploys(shapes, tmp_path):
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


def test_missing_data_of_a_classifier_is_named(tmp_path, refusal):
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    options = ['--cfg-options', 'train_dataloader.dataset.data_root=nowhere']
    assert 'nowhere is not there' in refusal('train.py', 'classifier.py', *options, cwd=tmp_path)


DIST_TRAIN = ROOT / 'tools/dist_train.sh'


def test_dist_train_starts_train_under_torchrun(tmp_path):
    """mmengine's launchers ask for a GPU each, so here train.py gets as far as its arguments."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'PORT': '29517'}
    command = [DIST_TRAIN, SHAPES_CONFIG, '2', '--resume', '--no-such-option']
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert result.stderr.count('train.py: error: unrecognized arguments: --no-such-option') == 2


def test_dist_train_without_a_number_of_gpus_says_how_it_is_used():
    result = subprocess.run([DIST_TRAIN, SHAPES_CONFIG], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('usage: ')


def test_what_needs_a_gpu_is_one_script_of_commands_that_the_tools_take(tmp_path, monkeypatch):
    recorder = tmp_path / 'python'
    recorder.write_text('#!/bin/sh\necho "$@" >> commands\n')
    recorder.chmod(0o755)
    log = tmp_path / 'out/shapes/mask_rcnn_r18/0/1/1.log'
    log.parent.mkdir(parents=True)
    log.write_text('Epoch(train) [1][50/50] memory: 1\nEpoch(val) [1]\n')
    environment = {**os.environ, 'PYTHON': str(recorder)}
    script = ROOT / 'tools/benchmark_gpu.sh'
    result = subprocess.run([script, 'out'], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('[50/50] memory: 1\n')
    commands = [line.split() for line in (tmp_path / 'commands').read_text().splitlines()]
    assert [Path(tool).name for tool, *_ in commands if 'benchmark.py' not in tool] == ['shapes.py', 'sweep.py', '-m']
    for tool, *options in commands:
        if tool != '-m':
            monkeypatch.setattr('sys.argv', [tool, *options])
            runpy.run_path(tool)['parse_args']()
            assert all(Path(option).exists() for option in options if option.endswith('.py'))
            models = {option.removeprefix('torchvision:') for option in options if option.startswith('torchvision:')}
            assert models <= set(torchvision.models.list_models())


PAGE = (ROOT / 'tools/README.md').read_text()


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').iterdir() if path.suffix in ('.py', '.sh')))
def test_every_tool_has_an_example(tool):
    assert re.search(rf'^(python )?tools/{re.escape(tool)}\b', PAGE, re.M)


def test_the_examples_name_files_that_are_there():
    names = re.findall(r'configs/[\w/]+\.py', PAGE)
    assert names
    assert all((ROOT / name).is_file() for name in names)
