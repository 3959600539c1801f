"""Sweeps over configs and seeds."""

import json
import math

import pytest
from helpers import ROOT, run_tool

from mmasr.experiments.digits import write_digits
from mmasr.experiments.sweep import Run, by_config, draw_sweep, spread, sweep

DIGITS = ROOT / 'configs/digits'


def runs(name, *values):
    return [Run(name, seed, {'accuracy/top1': value, 'other': 0.0}, 'accuracy/top1', 10) for seed, value in enumerate(values)]


def test_means_deviations_and_the_picture():
    swept = [*runs('a', 90.0, 92.0, 94.0), *runs('b', 95.0)]
    groups = by_config(swept)
    assert {name: [run.seed for run in group] for name, group in groups.items()} == {'a': [0, 1, 2], 'b': [0]}
    assert spread(groups['a']) == (92, 2)  # divided by n - 1
    assert spread(groups['b']) == (95, 0)
    (ax,) = draw_sweep(swept).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ['a', 'b']
    assert ax.get_ylabel() == 'accuracy/top1'
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_marker() == 'o']
    assert dots == [[90, 92, 94], [95]]


@pytest.fixture
def short(tmp_path):
    """Two configs that train for an epoch, and their data."""
    write_digits(tmp_path / 'data/digits')
    for name in ('resnet20', 'resnet20_asr_ie'):
        base = str(DIGITS / f'{name}.py')
        (tmp_path / f'{name}.py').write_text(f'_base_ = {base!r}\ntrain_cfg = dict(max_epochs=1, val_interval=1)\n')
    return tmp_path


def test_the_tool_trains_all_and_does_not_train_twice(short, monkeypatch):
    configs = ['resnet20.py', 'resnet20_asr_ie.py']
    result = run_tool('sweep.py', *configs, '--seeds', 2, '--out', 'sweep', cwd=short)
    assert result.returncode == 0, result.stderr
    found = json.loads((short / 'sweep/sweep.json').read_text())
    assert [(run['config'], run['seed']) for run in found] == [
        (name, seed) for seed in (0, 1) for name in ('resnet20', 'resnet20_asr_ie')
    ]
    assert all(0 < run['metrics']['accuracy/top1'] < 100 for run in found)
    assert found[0]['metrics'] != found[2]['metrics']  # another seed
    assert [run['parameters'] for run in found[:2]] == [272474, 272474 + 3 * 3 * (16 + 32 + 64)]  # ψ, a and b of IE
    rows = [line for line in result.stdout.splitlines() if line.startswith('| resnet20')]
    for row, name in zip(rows, ('resnet20', 'resnet20_asr_ie'), strict=True):
        values = [run['metrics']['accuracy/top1'] for run in found if run['config'] == name]
        mean = sum(values) / 2
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values))
        assert f'{mean:.4g} ± {deviation:.2g}' in row
    assert (short / 'sweep/sweep.png').read_bytes().startswith(b'\x89PNG')

    trained = (short / 'sweep/resnet20/0/epoch_1.pth').stat().st_mtime_ns
    with open(short / 'resnet20_asr_ie.py', 'a') as file:
        file.write('optim_wrapper = dict(optimizer=dict(lr=0.2))\n')
    others = (short / 'sweep/resnet20_asr_ie/0/epoch_1.pth').stat().st_mtime_ns
    monkeypatch.chdir(short)
    assert [(run.config, run.seed) for run in sweep(configs, 1, 'sweep')] == [('resnet20', 0), ('resnet20_asr_ie', 0)]
    assert (short / 'sweep/resnet20/0/epoch_1.pth').stat().st_mtime_ns == trained
    assert (short / 'sweep/resnet20_asr_ie/0/epoch_1.pth').stat().st_mtime_ns > others  # its config has changed


def test_bad_input_is_one_line(tmp_path, short, refusal):
    config = short / 'resnet20.py'
    assert '--seeds 0: a sweep needs one seed' in refusal('sweep.py', config, '--seeds', 0, cwd=short)
    assert 'two configs are named resnet20.py' in refusal('sweep.py', config, config, cwd=short)
    assert 'none.py: no such config' in refusal('sweep.py', 'none.py', cwd=short)
    (tmp_path / 'empty').mkdir()
    assert 'data/digits/train is not there' in refusal('sweep.py', config, cwd=tmp_path / 'empty')
    with open(config, 'a') as file:
        file.write('val_dataloader = val_cfg = val_evaluator = None\n')
    assert 'resnet20.py measures nothing' in refusal('sweep.py', config, cwd=short)
    assert not (short / 'work_dirs').exists()  # said before anything is trained
