"""tools/benchmark.py as a user runs it."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
import torchvision
from forked import run_python
from helpers import ROOT, SHAPES_CONFIG, run_tool

RESNET18 = ['--model', 'torchvision:resnet18']


@pytest.fixture
def small(tmp_path):
    """Return the config of a small classifier."""
    (tmp_path / 'config.py').write_text("""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', backbone=dict(type='ResNet', depth=18, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=128, loss=dict(type='CrossEntropyLoss')))
""")
    return tmp_path / 'config.py'


def test_it_measures_attention_and_writes_all_measurements(small, tmp_path):
    options = ['--attention', 'SE', 'CBAM', '--delta', 1, 2, '--batch', 2, 3, '--size', 32, 64]
    options += ['--rounds', 1, '--threads', 1, '--channels-last', '--out', 'a.json', '--picture', 'a.png']
    result = run_tool('benchmark.py', small, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / 'a.json').read_text())
    assert stored['machine']['torch'] == torch.__version__
    assert stored['settings'] | {'threads': 1, 'size': [32, 64], 'processes': 1} == stored['settings']
    for batch in '23':
        costs = {cost['name']: cost for cost in stored['batches'][batch]}
        assert list(costs) == [
            'plain',
            'SE',
            'ASR(SE), δ = 1',
            "ASR(SE), δ = 1, the paper's form",
            'ASR(SE), δ = 2',
            "ASR(SE), δ = 2, the paper's form",
            'ASR(SE), deployed',
            'ASR(SE) + SE',
            'CBAM',
        ]
        assert all(len(cost['training']) == len(cost['inference']) == 1 for cost in costs.values())
        plain, deployed = costs['plain'], costs['ASR(SE), deployed']
        one, two = costs['ASR(SE), δ = 1'], costs['ASR(SE), δ = 2']
        assert deployed['parameters'] == plain['parameters']
        assert deployed['training_bytes'] == plain['training_bytes']
        assert two['parameters'] > one['parameters'] > plain['parameters']
        # SE multiplies the feature map, which is saved for that.
        assert costs['SE']['training_bytes'] > 1.05 * one['training_bytes']
        for name in costs:
            assert name in result.stdout
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_it_measures_convolutions_without_attention(small, tmp_path):
    options = ['--convs', 'OREPA', 'OfflineOREPA', 'DBB', '--batch', 2, '--size', 64, '--rounds', 1]
    options += ['--out', 'a.json']
    result = run_tool('benchmark.py', small, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    costs = {cost['name']: cost for cost in json.loads((tmp_path / 'a.json').read_text())['batches']['2']}
    assert not any('SE' in name for name in costs)
    plain, kernels = costs['plain'], 4 * costs['plain']['parameters']
    for kind in ('OREPA', 'OfflineOREPA', 'DBB'):
        deployed = costs[f'{kind}, deployed']
        assert deployed['multiply_adds'] == plain['multiply_adds']
        assert deployed['training_bytes'] == plain['training_bytes']
    extra = {name: cost['training_bytes'] - plain['training_bytes'] for name, cost in costs.items()}
    # OREPA saves its kernels, whatever the number of images. The frequency prior adds 27 numbers per channel,
    # at most 3 / 128 of the kernels.
    assert 0 < extra['OREPA'] <= 1.05 * kernels < extra["OREPA, the authors' form"]


def test_it_measures_several_image_sides_and_draws_how_the_cost_grows(tmp_path):
    options = ['--convs', 'XVolution', 'XVolution,branch=sa', '--batch', 2, '--sides', 64, 128, '--rounds', 1]
    options += [*RESNET18, '--layer', 'layer3', '--out', 'a.json', '--picture', 'a.png']
    result = run_tool('benchmark.py', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sides = json.loads((tmp_path / 'a.json').read_text())['sides']
    assert list(sides) == ['64', '128']
    plain, trained, deployed, *_ = sides['128']
    assert [trained['name'], deployed['name']] == ['XVolution', 'XVolution, deployed']
    # The deployed form has no BatchNorm.
    assert plain['training_bytes'] < deployed['training_bytes'] < trained['training_bytes']
    assert 'torchvision:resnet18, layer3, feature map 2 x 128 x 16 x 16' in result.stdout
    assert plain['parameters'] == sum(p.numel() for p in torchvision.models.resnet18().layer3.parameters())
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_it_measures_launching_in_a_narrow_network(tmp_path):
    options = [*RESNET18, '--launching', '--convs', 'OREPA', '--rounds', 2, '--out', 'a.json']
    result = run_tool('benchmark.py', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / 'a.json').read_text())
    assert stored['settings'] | {'threads': 1, 'size': [64], 'device': 'cpu'} == stored['settings']
    costs = {cost['name']: cost for cost in stored['batches']['1']}
    assert list(costs) == ['plain', 'OREPA', "OREPA, the authors' form", 'OREPA, deployed']
    assert all(len(seconds) == 2 for cost in costs.values() for seconds in cost['phases'].values())
    assert costs['plain']['training_ratio'] == [1, 1, 1]
    assert 'backward, ms' in result.stdout


@pytest.mark.parametrize('part', ['whole', 'backbone'])
def test_it_measures_the_plain_network_of_a_config_with_asr(part, tmp_path):
    options = ['--part', part, '--attention', 'ECA', '--batch', 1, '--size', 64, '--rounds', 1]
    options += ['--out', 'a.json']
    result = run_tool('benchmark.py', SHAPES_CONFIG, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plain, *_, deployed, _ = json.loads((tmp_path / 'a.json').read_text())['batches']['1']
    assert deployed['parameters'] == plain['parameters']
    assert deployed['multiply_adds'] == plain['multiply_adds']


def test_it_measures_a_classifier_with_mixed_precision(small, tmp_path):
    result = run_tool('benchmark.py', small, '--batch', 2, '--size', 32, '--rounds', 1, '--amp', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'ASR(SE), deployed' in result.stdout


def test_it_measures_training_in_two_processes(tmp_path):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    options = ['--layer', 'layer1', '--batch', '2', '--size', '32', '--rounds', '1', '--threads', '1']
    command = [*torchrun, ROOT / 'tools/benchmark.py', *RESNET18, *options]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('| plain') == 2  # only one process prints its two tables
    assert 'processes 2' in result.stdout


BUT_TORCH = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'rich', 'matplotlib', 'timm', 'pycocotools', 'tqdm')


@pytest.mark.parametrize(
    ('options', 'status', 'text'),
    [
        (RESNET18, 0, 'ASR(SE), deployed'),
        ([*RESNET18, '--picture', 'a.png'], 1, '--picture needs matplotlib'),
        ([SHAPES_CONFIG], 1, 'a config needs OpenMMLab'),
    ],
)
def test_it_needs_only_torch_and_torchvision(options, status, text, tmp_path):
    size = ['--size', 32, '--batch', 2, '--rounds', 1]
    result = run_python(ROOT / 'tools/benchmark.py', *options, *size, cwd=tmp_path, without=BUT_TORCH)
    assert result.returncode == status, result.stderr
    assert text in result.stdout + result.stderr


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([*RESNET18, '--attention', 'XX'], '--attention XX: unknown; known are CBAM, ECA'),
        ([*RESNET18, '--convs', 'XX'], '--convs XX: unknown type; known are ACNet, DBB'),
        ([*RESNET18, '--convs', 'ASR'], '--convs ASR: unknown type; known are ACNet, DBB'),
        (
            [*RESNET18, '--convs', 'XVolution,branch'],
            '--convs XVolution,branch: branch is not an option',
        ),
        ([*RESNET18, '--sides', '32', '64', '--batch', '1', '2'], '--sides needs a single --batch'),
        ([*RESNET18, '--layer', 'layer9'], "ResNet has no layer 'layer9' that takes one feature map"),
        (['small.py', '--layer', 'layer3'], '--layer needs --model or --part backbone'),
        ([*RESNET18, '--convs', 'DBB', '--picture', 'a.png'], '--picture draws attention'),
        (
            ['--model', 'torchvision:vit_b_16', '--convs', 'ACNet'],
            'VisionTransformer has no 3 x 3 convolution',
        ),
        (['--model', 'torchvision:vgg11'], 'torchvision:vgg11: no site for attention found in VGG'),
        (['--model', 'torchvision:nope'], 'torchvision has no such classifier'),
        (['--model', 'timm:resnet18'], 'only torchvision:NAME is supported'),
        ([*RESNET18, '--launching', '--amp'], '--amp does not go with --launching'),
        ([*RESNET18, '--launching', '--device', 'cuda:0'], '--launching measures the CPU'),
        (['small.py', '--launching'], '--launching needs --model or --part backbone'),
        (
            ['--model', 'torchvision:convnext_tiny', '--launching'],
            'ConvNeXt does not run with layers one 16th as wide',
        ),
        ([*RESNET18, '--device', 'cuda'], 'torch finds no GPU'),
        ([*RESNET18, '--out', 'no/a.json'], "can't write to no"),
        ([*RESNET18, '--out', 'empty.py'], 'empty.py: already exists'),
        ([*RESNET18, '--size', '1', '2', '3'], '--size takes a side, or height and width, not 3'),
        (['none.py'], 'none.py: no such config'),
        (['unknown.py'], 'unknown.py does not build: KeyError'),
        (['empty.py'], 'empty.py: has no model'),
        ([*RESNET18, '--batch', '1', '--size', '32'], 'Expected more than 1 value per channel'),
        (['small.py'], 'small.py, whole: ResNet does not run on images of shape (8, 3, 224, 224)'),
    ],
)
def test_unusable_arguments_are_rejected_in_one_line(args, message, tmp_path, monkeypatch):
    (tmp_path / 'unknown.py').write_text("model = dict(type='Unknown')")
    (tmp_path / 'empty.py').write_text('a = 1')
    (tmp_path / 'small.py').write_text("model = dict(type='mmdet.ResNet', depth=18, in_channels=1)")
    if 'cuda' in args and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
    with pytest.raises(SystemExit, match=re.escape(message)):
        runpy.run_path(str(ROOT / 'tools/benchmark.py'), run_name='__main__')
