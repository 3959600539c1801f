"""Train configs with several seeds each and set the results side by side."""

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import torch
from mmengine.config import Config

from ..errors import InputError
from ..files import temporary_files
from ..openmmlab.building import build_runner
from ..openmmlab.config import load_config
from ..openmmlab.data_sources import check_data
from ..openmmlab.evaluation import main_metric, quiet
from ..plots import GREY, RED, TEXT, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass
class Run:
    """One training and what its last validation found.

    Attributes:
        config (str): Name of the config, without its folder.
        seed (int): Seed of the training.
        metrics (dict[str, float]): All metrics by name.
        main (str): The one that counts.
        parameters (int): Number of parameters of the trained network.
        setting (str): What its config was overridden with, see :func:`sweep`; empty, if with nothing.
    """

    config: str
    seed: int
    metrics: dict[str, float]
    main: str
    parameters: int
    setting: str = ''

    @property
    def value(self) -> float:
        """The metric that counts."""
        return self.metrics[self.main]


def sweep(
    paths: Sequence[str | Path], seeds: int, out: str | Path, settings: Sequence[dict[str, object]] = ({},), jobs: int = 1
) -> Iterator[Run]:
    """Train every config with the seeds 0, 1, ..., in the folder ``<out>/<config>/<seed>``; with several settings in
    ``<out>/<config>/<setting>/<seed>``.

    A training that has finished there, with the same config, is not run again, so a sweep that was interrupted goes on.

    Args:
        paths (Sequence[str | Path]): Config files.
        seeds (int): Number of seeds.
        out (str | Path): Folder for everything that the trainings write.
        settings (Sequence[dict[str, object]]): What to override in every config, full key -> value, each in turn. Default:
            nothing.
        jobs (int): Number of trainings at a time, each in a process of its own with its share of the threads. Default: 1, here.

    Yields:
        Run: One training after the other, all configs and settings with a seed before the next seed.

    Raises:
        InputError: If there are no seeds or no jobs, two configs have the same name or two settings the same values, or a
            config does not load, lacks its data, or measures nothing.
    """
    if seeds < 1:
        raise InputError(f'`seeds` {seeds}: a sweep needs one at least, better five')
    if jobs < 1:
        raise InputError(f'`jobs` {jobs}: one training at a time is the least')
    configs = [load_config(path) for path in paths]
    names = [Path(path).stem for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f'two configs are named {twice.pop()}.py; their results would share a folder')
    said = [' '.join(f'{key.rpartition(".")[2]}={value}' for key, value in setting.items()) for setting in settings]
    if len(set(said)) < len(said):
        raise InputError('two settings have the same values; their results would share a folder')
    for config in configs:
        if not config.get('val_evaluator'):
            raise InputError(f'{config.filename} measures nothing at the end of its training: it needs a val_evaluator')
        check_data(config, 'train_dataloader', 'val_dataloader', 'val_evaluator')
    trainings = []
    for seed, (text, setting) in itertools.product(range(seeds), zip(said, settings, strict=True)):
        for name, config in zip(names, configs, strict=True):
            config = copy.deepcopy(config)
            config.merge_from_dict(setting)
            trainings.append((name, text, config, seed, Path(out, name, text, str(seed))))
    if jobs == 1:
        yield from itertools.starmap(_train, trainings)
        return
    with ThreadPoolExecutor(jobs) as pool:  # pools of processes give every task a new one since Python 3.11 only
        yield from pool.map(partial(_train_apart, max(1, torch.get_num_threads() // jobs)), trainings)


def _train_apart(threads: int, training: tuple) -> Run:
    """Run a training in a process of its own."""
    with ProcessPoolExecutor(1, get_context('spawn'), torch.set_num_threads, (threads,)) as process:
        return process.submit(_train, *training).result()


def _train(name: str, setting: str, config: Config, seed: int, folder: Path) -> Run:
    config.merge_from_dict({'work_dir': str(folder), 'randomness.seed': seed, 'experiment_name': f'{name}_{seed}'})
    record = folder / 'run.json'
    if record.exists():
        finished = json.loads(record.read_text())
        if finished['text'] == config.pretty_text:
            return Run(**finished['run'])
    with quiet():  # mmengine logs to the standard output; its log files have all of it
        runner = build_runner(config)
        runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {key.removeprefix('val/'): scalars[key].current() for key in scalars if key.startswith('val/')}
    metrics = {key: value for key, value in metrics.items() if key not in ('time', 'data_time')}
    parameters = sum(p.numel() for p in runner.model.parameters())
    run = Run(name, seed, metrics, main_metric(config, metrics), parameters, setting)
    with temporary_files(record) as (file,):
        file.write_text(json.dumps({'run': dataclasses.asdict(run), 'text': config.pretty_text}))
    return run


def by_config(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of every config, in the order of the runs."""
    return _grouped(runs, 'config')


def by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs with every setting, in the order of the runs."""
    return _grouped(runs, 'setting')


def _grouped(runs: Sequence[Run], by: str) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, by), []).append(run)
    return groups


def spread(runs: Sequence[Run]) -> tuple[float, float]:
    """Mean and standard deviation (divided by n - 1; 0 of a single run) of what counts."""
    values = [run.value for run in runs]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def draw_sweep(runs: Sequence[Run]) -> 'Figure':
    """Every run as a dot, mean and standard deviation of every config as a bar; with several settings, a line for every config
    over them.

    Args:
        runs (Sequence[Run]): All runs of a sweep.

    Returns:
        matplotlib.figure.Figure: As wide as its configs need.
    """
    if len(by_setting(runs)) > 1:
        return _draw_settings(runs)
    groups = by_config(runs)
    figure, ((ax,),) = panels(0.8 + 0.7 * len(groups), 2.2)
    for place, group in enumerate(groups.values()):
        ax.plot([place] * len(group), [run.value for run in group], 'o', color=GREY, alpha=0.6, markersize=4)
        average, deviation = spread(group)
        ax.errorbar(place + 0.18, average, deviation, fmt='_', color=RED, capsize=3, markersize=8)
    ax.set_xticks(range(len(groups)), groups, rotation=20, ha='right')
    ax.set_xlim(-0.5, len(groups) - 0.3)
    ax.set_ylabel(runs[0].main)
    return figure


def _draw_settings(runs: Sequence[Run]) -> 'Figure':
    settings, configs = list(by_setting(runs)), by_config(runs)
    figure, ((ax,),) = panels(2.5 + 0.8 * len(settings), 2.4)
    for number, (name, group) in enumerate(configs.items()):
        places = [place + 0.06 * (number - (len(configs) - 1) / 2) for place in range(len(settings))]
        values = by_setting(group)
        means, deviations = zip(*(spread(values[setting]) for setting in settings), strict=True)
        ax.errorbar(places, means, deviations, fmt='o-', color=f'C{number}', markersize=3, linewidth=1, capsize=2, label=name)
    ax.set_xticks(range(len(settings)), settings)
    ax.set_ylabel(runs[0].main)
    figure.legend(loc='outside right center', fontsize=TEXT, frameon=False)
    return figure
