"""Sweeps over configs, settings and seeds, and tools/sweep.py."""

import dataclasses
import itertools
import json
import math
import re
import runpy
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, run_tool

from mmasr.errors import InputError
from mmasr.experiments.digits import write_digits
from mmasr.experiments.sweep import (
    Run,
    by_config,
    draw_sweep,
    estimate,
    mean_and_std,
    paired_difference,
    sweep,
)

DIGITS = ROOT / 'configs/digits'
NAMES = ['resnet20', 'resnet20_asr_ie']


def runs(name, *values):
    return [
        Run(name, seed, {'accuracy/top1': value, 'other': 0.0}, 'accuracy/top1', 10)
        for seed, value in enumerate(values)
    ]


def test_runs_are_grouped_by_config():
    groups = by_config([*runs('b', 95.0), *runs('a', 90.0, 92.0), *runs('b', 96.0)])
    assert {name: [run.value for run in group] for name, group in groups.items()} == {
        'b': [95, 96],
        'a': [90, 92],
    }


@pytest.mark.parametrize(('values', 'expected'), [([90.0, 92.0, 94.0], (92, 2)), ([95.0], (95, 0))])
def test_the_standard_deviation_is_divided_by_one_less_than_the_runs(values, expected):
    assert mean_and_std(runs('a', *values)) == expected


def test_differences_are_paired_by_seed():
    reference = runs('plain', 70.0, 72.0, 75.0)
    found = list(reversed(runs('asr', 71.0, 73.0, 77.0)))  # in another order
    average, half = paired_difference(found, reference)
    assert average == pytest.approx(4 / 3)
    # Student's t with two degrees of freedom is 4.3027 at 97.5 %; the differences 1, 1, 2 deviate by 0.57735.
    assert half == pytest.approx(4.3027 * 0.57735 / 3**0.5, rel=1e-4)


def test_the_picture_has_a_dot_for_every_run():
    (ax,) = draw_sweep([*runs('a', 90.0, 92.0, 94.0), *runs('b', 95.0)]).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ['a', 'b']
    assert ax.get_ylabel() == 'top-1 accuracy, %'
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_marker() == 'o']
    assert dots == [[90, 92, 94], [95]]


def test_the_picture_of_several_settings_has_a_line_for_every_config():
    several = [
        dataclasses.replace(run, setting=setting, metrics={'accuracy/top1': run.value - loss})
        for setting, loss in (('x=1', 0), ('x=2', 10))
        for run in (*runs('a', 90.0, 94.0), *runs('b', 95.0))
    ]
    (ax,) = draw_sweep(several).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ['x=1', 'x=2']
    lines = {container.get_label(): container for container in ax.containers}
    assert {name: list(line.lines[0].get_ydata()) for name, line in lines.items()} == {
        'a': [92, 82],
        'b': [95, 85],
    }


@pytest.fixture(scope='module')
def short(tmp_path_factory):
    """Return a folder with two configs that train for one epoch, and their data."""
    folder = tmp_path_factory.mktemp('short')
    write_digits(folder / 'data/digits')
    for name in NAMES:
        base = str(DIGITS / f'{name}.py')
        (folder / f'{name}.py').write_text(
            f'_base_ = {base!r}\ntrain_cfg = dict(max_epochs=1, val_interval=1)\n'
        )
    return folder


@pytest.fixture(scope='module')
def swept(short):
    """Return what the tool prints when it trains both configs with two seeds."""
    configs = [f'{name}.py' for name in NAMES]
    result = run_tool('sweep.py', *configs, '--seeds', 2, '--out', 'sweep', '--estimate', cwd=short)
    assert result.returncode == 0, result.stderr
    assert re.search(r'about \S+ hours without validation: 4 trainings of', result.stderr)
    return result.stdout


@pytest.mark.xdist_group('sweep')
def test_the_tool_trains_all_configs_with_all_seeds(short, swept):
    found = json.loads((short / 'sweep/sweep.json').read_text())
    assert [(run['config'], run['seed']) for run in found] == [
        (name, seed) for seed in (0, 1) for name in NAMES
    ]
    assert all(0 < run['metrics']['accuracy/top1'] < 100 for run in found)
    assert found[0]['metrics'] != found[2]['metrics']  # the seeds differ
    # IE adds ψ, a and b for each channel.
    assert [run['parameters'] for run in found[:2]] == [272474, 272474 + 3 * 3 * (16 + 32 + 64)]
    rows = [line for line in swept.splitlines() if line.startswith('| resnet20')]
    for row, name in zip(rows, NAMES, strict=True):
        values = [run['metrics']['accuracy/top1'] for run in found if run['config'] == name]
        mean = sum(values) / 2
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values))
        assert f'{mean:.4g} ± {deviation:.2g}' in row
        assert row.count('±') == (1 if name == NAMES[0] else 2)  # the difference from the first config
    assert (short / 'sweep/sweep.png').read_bytes().startswith(b'\x89PNG')
    written = (short / 'sweep/sweep.md').read_text().splitlines()
    written = [line for line in written if line.startswith('| resnet20')]
    assert [line.split() for line in written] == [line.split() for line in rows]


@pytest.mark.xdist_group('sweep')
@pytest.mark.usefixtures('swept')
@pytest.mark.parametrize(('name', 'changed'), [('resnet20', False), ('resnet20_asr_ie', True)])
def test_a_training_is_repeated_only_if_its_config_has_changed(name, changed, short, monkeypatch):
    checkpoint = short / f'sweep/{name}/0/epoch_1.pth'
    before = checkpoint.stat().st_mtime_ns
    if changed:
        with open(short / f'{name}.py', 'a') as file:
            file.write('optim_wrapper = dict(optimizer=dict(lr=0.2))\n')
    monkeypatch.chdir(short)
    (run,) = sweep([f'{name}.py'], 1, 'sweep')
    assert (run.config, run.seed) == (name, 0)
    assert (checkpoint.stat().st_mtime_ns > before) == changed


def test_settings_that_do_not_fit_are_refused(short, monkeypatch):
    monkeypatch.chdir(short)
    with pytest.raises(InputError, match=r'`settings` do not fit resnet20\.py: .*list'):
        list(sweep([f'{NAMES[0]}.py'], 1, 'wrong', [{'train_dataloader.dataset.pipeline.scale': 3}]))


@pytest.mark.xdist_group('sweep')
def test_an_interrupted_training_continues_from_its_last_checkpoint(short, monkeypatch):
    monkeypatch.chdir(short)
    settings = {'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.max_keep_ckpts': 2}
    settings['default_hooks.checkpoint.interval'] = 1
    (complete,) = sweep(['resnet20.py'], 1, 'two', [settings])
    (folder,) = (short / 'two/resnet20').glob('*/0')
    (folder / 'epoch_2.pth').unlink()
    record = json.loads((folder / 'run.json').read_text())
    (folder / 'run.json').write_text(json.dumps({'text': record['text']}))
    first = (folder / 'epoch_1.pth').stat().st_mtime_ns
    # A resumed training draws other random numbers, so its result is near the first one, not equal.
    (resumed,) = sweep(['resnet20.py'], 1, 'two', [settings])
    assert (folder / 'epoch_2.pth').exists()
    assert (folder / 'epoch_1.pth').stat().st_mtime_ns == first
    assert abs(resumed.value - complete.value) < 20
    # With another config, a training does not continue from what is there.
    (other,) = sweep(['resnet20.py'], 1, 'two', [{**settings, 'train_cfg.val_interval': 2}])
    assert other.setting != resumed.setting


@pytest.mark.xdist_group('sweep')
@pytest.mark.usefixtures('swept')
def test_the_duration_is_estimated_from_the_iterations_that_remain(short, monkeypatch):
    monkeypatch.chdir(short)
    clock = SimpleNamespace(perf_counter=itertools.count(step=0.5).__next__)  # half a second per iteration
    monkeypatch.setattr('mmasr.experiments.sweep.time', clock)
    before = set(short.rglob('*'))
    found = estimate([f'{NAMES[0]}.py'], 3, 'sweep')
    seconds, remaining = found[NAMES[0], '']
    assert remaining == 1  # two seeds were trained
    log = next((short / 'sweep/resnet20/0').rglob('*.log')).read_text()
    iterations = int(re.search(r'Epoch\(train\).*\[1\]\[ *\d+/(\d+)\]', log)[1])
    assert seconds == pytest.approx(0.5 * iterations)
    assert set(short.rglob('*')) == before


def test_the_tool_refuses_an_unknown_metric(short):
    result = run_tool(
        'sweep.py', f'{NAMES[0]}.py', '--seeds', 1, '--out', 'sweep', '--metrics', 'mAP', cwd=short
    )
    assert result.returncode == 1
    assert '--metrics mAP: the trainings have accuracy/top1' in result.stderr


@pytest.mark.xdist_group('sweep')
def test_the_tool_trains_with_every_group_of_settings(short):
    settings = ['--settings', 'randomness.deterministic=False', 'model.head.topk=1']
    settings += ['--settings', 'optim_wrapper.optimizer.lr=0.01']
    result = run_tool('sweep.py', 'resnet20.py', '--seeds', 1, '--out', 'settings', *settings, cwd=short)
    assert result.returncode == 0, result.stderr
    first, second = json.loads((short / 'settings/sweep.json').read_text())
    assert (first['setting'], second['setting']) == ('deterministic=False topk=1', 'lr=0.01')
    assert 'lr=0.01' in (short / 'settings/resnet20/lr=0.01/0/run.json').read_text()
    row = next(line for line in result.stdout.splitlines() if line.startswith('| resnet20'))
    for run in (first, second):
        assert f'{run["metrics"]["accuracy/top1"]:.4g} ± 0' in row
    assert first['metrics'] != second['metrics']


def test_the_table_has_titles_for_several_settings_only():
    found = [
        dataclasses.replace(run, setting='lr=0.01') for run in (*runs('a', 9.0, 9.5), *runs('b', 8.0, 9.0))
    ]
    result_table = runpy.run_path(str(ROOT / 'tools/sweep.py'))['result_table']
    table = result_table(found, [], 2)
    assert [column.header for column in table.columns] == [
        'config',
        'parameters',
        'accuracy/top1, mean ± std of 2',
        'minus the first config, 95 % interval',
    ]
    found += [dataclasses.replace(run, setting='lr=0.1') for run in found]
    assert [column.header.partition(' ')[0] for column in result_table(found, [], 2).columns[2:]] == [
        'lr=0.01',
        'lr=0.1',
        'lr=0.01',
        'lr=0.1',
    ]


@pytest.mark.xdist_group('sweep')
def test_parallel_trainings_give_the_same_results_as_sequential_ones(short, monkeypatch):
    monkeypatch.chdir(short)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # one for each process, because the number of threads affects rounding
    parallel = list(sweep(['resnet20.py'], 2, 'jobs', jobs=2))
    torch.set_num_threads(1)
    (alone,) = sweep(['resnet20.py'], 1, 'alone')
    torch.set_num_threads(threads)
    assert [run.seed for run in parallel] == [0, 1]
    assert parallel[0] == alone
    assert list(sweep(['resnet20.py'], 2, 'jobs')) == parallel  # no training is repeated


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['resnet20.py', '--seeds', 0], '--seeds 0: a sweep needs at least one'),
        (['resnet20.py', 'resnet20.py'], 'two configs are named resnet20.py'),
        (['none.py'], 'none.py: no such config'),
        (['resnet20.py', '--jobs', 0], '--jobs 0: at least one training must run at a time'),
        (
            ['resnet20.py', '--settings', 'a.lr=1', '--settings', 'b.lr=1'],
            'two settings have the same values',
        ),
        (['nothing.py'], 'nothing.py has no val_evaluator'),
    ],
)
def test_unusable_arguments_are_rejected_before_anything_is_trained(args, message, short, refusal):
    (short / 'nothing.py').write_text(
        "_base_ = 'resnet20.py'\nval_dataloader = val_cfg = val_evaluator = None\n"
    )
    assert message in refusal('sweep.py', *args, cwd=short)
    assert not (short / 'work_dirs').exists()


def test_missing_data_is_reported_before_anything_is_trained(short, tmp_path, refusal):
    message = refusal('sweep.py', short / 'resnet20.py', cwd=tmp_path)
    assert 'data/digits/train does not exist' in message
    assert not (tmp_path / 'work_dirs').exists()


def test_long_settings_and_paths_give_short_names_of_folders(short, monkeypatch):
    monkeypatch.chdir(short)
    settings = [
        {'train_dataloader.dataset.data_root': str(short / 'data/digits'), 'notes': 'x' * 300 + end}
        for end in 'ab'
    ]
    runs = list(sweep(['resnet20.py'], 1, 'long', settings))
    folders = [path.parent.parent for path in (short / 'long').rglob('run.json')]
    assert len(runs) == len(folders) == 2
    assert all(folder.parent == short / 'long/resnet20' for folder in folders)


def test_networks_with_visualizers_of_one_name_are_timed(short, monkeypatch):
    monkeypatch.chdir(short)
    settings = [{'visualizer.name': 'one', 'randomness.deterministic': value} for value in (False, True)]
    assert len(estimate(['resnet20.py'], 1, 'names', settings)) == 2


def test_the_settings_may_name_the_data(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = {f'{part}_dataloader.dataset.data_root': f'{short}/data/digits' for part in ('train', 'val')}
    estimate([short / 'resnet20.py'], 1, 'elsewhere', [roots])
    roots['train_dataloader.dataset.data_root'] = 'nowhere'
    with pytest.raises(InputError, match='nowhere/train does not exist'):
        estimate([short / 'resnet20.py'], 1, 'elsewhere', [roots])
