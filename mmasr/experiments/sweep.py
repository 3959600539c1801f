"""Train configs with several seeds each, and compare the results."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from statistics import mean, stdev
from typing import TYPE_CHECKING

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import InputError, as_input_error
from ..files import temporary_files
from ..openmmlab.building import build_runner
from ..openmmlab.config import load_config
from ..openmmlab.data_sources import check_data
from ..openmmlab.evaluation import main_metric, quiet
from ..plots import GRAY, METRICS, RED, TEXT, panels
from ..untrusted import data_only
from ..untrusted.resuming import ResumeHook, checkpoint_to_resume

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: File in the folder of a run with its config and, once it has finished, its results.
_RECORD = 'run.json'
#: Iterations that are not timed, and that are.
_WARM_UP, _TIMED = 10, 20


@dataclasses.dataclass
class Run:
    """One training run and the metrics of its last validation.

    Attributes:
        config (str): Name of the config, without its folder and suffix.
        seed (int): Seed of the run.
        metrics (dict[str, float]): All metrics, name -> value.
        main (str): Name of the main metric.
        parameters (int): Number of parameters of the trained network.
        setting (str): The settings that override the config, as text; empty if there are none. See
            :func:`sweep`.
    """

    config: str
    seed: int
    metrics: dict[str, float]
    main: str
    parameters: int
    setting: str = ''

    @property
    def value(self) -> float:
        """Value of the main metric."""
        return self.metrics[self.main]


def sweep(
    paths: Sequence[str | Path],
    seeds: int,
    out: str | Path,
    settings: Sequence[dict[str, object]] = ({},),
    jobs: int = 1,
) -> Iterator[Run]:
    """Train every config with the seeds 0, 1, ..., in the folder ``<out>/<config>/<seed>``.

    With settings that override the config, the folder is ``<out>/<config>/<setting>/<seed>``, where long
    settings are shortened. An interrupted sweep resumes: a run that finished there with the same config is
    not repeated, and one that did not continues from its newest checkpoint.

    Args:
        paths (Sequence[str | Path]): Config files.
        seeds (int): Number of seeds.
        out (str | Path): Folder for all files that the runs write.
        settings (Sequence[dict[str, object]]): Settings to override in every config, full key -> value. Each
            item gives one run per config and seed. Default: one item, which overrides nothing.
        jobs (int): Number of runs at a time. With 1 they run in this process; with more, each runs in its own
            process with its share of the threads and a GPU, of which they use all in turn. Default: 1.

    Yields:
        Run: The finished runs: all configs and settings with one seed before the next seed.

    Raises:
        InputError: If ``seeds`` or ``jobs`` is less than 1, if two configs have the same name or two settings
            the same values, or if a config does not load or fit the settings, lacks its data, or has no
            evaluator.
    """
    if seeds < 1:
        raise InputError(f'`seeds` {seeds}: a sweep needs at least one; use five or more')
    if jobs < 1:
        raise InputError(f'`jobs` {jobs}: at least one training must run at a time')
    trainings = _trainings(paths, seeds, out, settings)
    if jobs == 1:
        yield from itertools.starmap(_train, trainings)
        return
    # Threads that start one process for each run, because a pool of processes can replace its workers after
    # each task only since Python 3.11.
    places: Queue[int] = Queue()
    for place in range(jobs):
        places.put(place)
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(
            partial(_train_in_process, places, max(1, torch.get_num_threads() // jobs)), trainings
        )


def _trainings(
    paths: Sequence[str | Path], seeds: int, out: str | Path, settings: Sequence[dict[str, object]]
) -> list[tuple]:
    """Return the arguments of :func:`_train` for all runs of a sweep.

    Raises:
        InputError: See :func:`sweep`.
    """
    configs = [load_config(path) for path in paths]
    names = [Path(path).stem for path in paths]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InputError(f'two configs are named {duplicates.pop()}.py; their results would share a folder')
    texts = [
        ' '.join(f'{key.rpartition(".")[2]}={value}' for key, value in setting.items())
        for setting in settings
    ]
    folders = [_folder_name(text) for text in texts]
    if len(set(folders)) < len(folders):
        raise InputError('two settings have the same values; their results would share a folder')
    merged = []
    for (text, folder, setting), (name, config) in itertools.product(
        zip(texts, folders, settings, strict=True), zip(names, configs, strict=True)
    ):
        config = copy.deepcopy(config)
        with as_input_error(f'`settings` do not fit {config.filename}'):
            config.merge_from_dict(setting)
        if not config.get('val_evaluator'):
            raise InputError(
                f'{config.filename} has no val_evaluator, so its trainings would give no result to compare'
            )
        check_data(config, 'train_dataloader', 'val_dataloader', 'val_evaluator')
        merged.append((name, text, folder, config))
    return [
        (name, text, copy.deepcopy(config), seed, Path(out, name, folder, str(seed)))
        for seed, (name, text, folder, config) in itertools.product(range(seeds), merged)
    ]


def _folder_name(text: str) -> str:
    """Return a name for a folder that is the text, unless it is too long or contains a path."""
    name = text.replace('/', '_')
    return name if len(name) <= 100 else f'{name[:80]} {hashlib.sha256(text.encode()).hexdigest()[:8]}'


def estimate(
    paths: Sequence[str | Path], seeds: int, out: str | Path, settings: Sequence[dict[str, object]] = ({},)
) -> dict[tuple[str, str], tuple[float, int]]:
    """Time some iterations of each config, to tell how long a sweep takes.

    Args:
        paths (Sequence[str | Path]): See :func:`sweep`, like the other arguments.
        seeds (int): Number of seeds.
        out (str | Path): Folder of the sweep.
        settings (Sequence[dict[str, object]]): Settings to override. Default: none.

    Returns:
        dict[tuple[str, str], tuple[float, int]]: Config and setting -> duration of one training in seconds,
        without validation, and the number of trainings that have not finished yet.

    Raises:
        InputError: See :func:`sweep`; or if a config has fewer than three iterations.
    """
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for name, setting, config, seed, folder in _trainings(paths, seeds, out, settings):
        seconds, remaining = found.get((name, setting)) or (_seconds(config), 0)
        finished = 'run' in _record(folder, _text(config, name, seed, folder))
        found[name, setting] = seconds, remaining + (not finished)
    return found


class _Timer(Hook):
    """Hook that stops a training after some iterations, and tells how long the last ones took."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Note the time, and stop after enough iterations."""
        # Without a log in this iteration, a GPU may still be computing it.
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) > _WARM_UP + _TIMED or runner.iter + 1 == runner.max_iters:
            raise _Timed


class _Timed(Exception):  # noqa: N818
    """Raised to stop a training that is only timed."""


def _seconds(config: Config) -> float:
    """Return an estimate of the duration of a training, without validation."""
    config = copy.deepcopy(config)
    with tempfile.TemporaryDirectory() as folder, data_only(), quiet():
        _set_name(config, Path(folder).name, folder)
        runner = build_runner(config)
        timer = _Timer()
        runner.register_hook(timer, 'LOWEST')
        with contextlib.suppress(_Timed):
            runner.train()
    times = timer.times[min(_WARM_UP, len(timer.times) // 2) :]
    if len(times) < 2:
        raise InputError(f'{config.filename} has too few iterations to estimate its duration')
    return (times[-1] - times[0]) / (len(times) - 1) * runner.max_iters


def _train_in_process(places: Queue[int], threads: int, training: tuple) -> Run:
    """Run a training in its own process, on the GPU of a free place."""
    place = places.get()
    try:
        with ProcessPoolExecutor(1, get_context('spawn'), _start, (threads, place)) as process:
            return process.submit(_train, *training).result()
    finally:
        places.put(place)


def _start(threads: int, place: int) -> None:
    """Set the number of threads of a process, and the GPU of its place."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())


def _train(name: str, setting: str, config: Config, seed: int, folder: Path) -> Run:
    """Run a training, or resume it; its record shows whether it began or finished with the same config."""
    text = _text(config, name, seed, folder)
    record = _record(folder, text)
    if 'run' in record:
        return Run(**record['run'])
    if record and (checkpoint := checkpoint_to_resume('auto', str(folder))):
        config.merge_from_dict({'load_from': checkpoint, 'resume': True})
    _write(folder, {'text': text})
    with data_only(), quiet():  # mmengine logs to stdout; its log files contain the same
        runner = build_runner(config)
        runner.register_hook(ResumeHook())
        runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {key.removeprefix('val/'): scalars[key].current() for key in scalars if key.startswith('val/')}
    metrics = {key: value for key, value in metrics.items() if key not in ('time', 'data_time')}
    parameters = sum(p.numel() for p in runner.model.parameters())
    run = Run(name, seed, metrics, main_metric(config, metrics), parameters, setting)
    _write(folder, {'run': dataclasses.asdict(run), 'text': text})
    return run


def _text(config: Config, name: str, seed: int, folder: Path) -> str:
    """Complete the config of a run, and return its text."""
    config.merge_from_dict({'randomness.seed': seed})
    _set_name(config, f'{name}_{seed}', folder)
    return config.pretty_text


def _set_name(config: Config, name: str, folder: str | Path) -> None:
    """Set the name and the folder of a runner.

    mmengine shares loggers, and visualizers with their folders, among runners of one name.
    """
    config.merge_from_dict({'work_dir': str(folder), 'experiment_name': name})
    if config.get('visualizer'):
        config.visualizer.pop('name', None)


def _record(folder: Path, text: str) -> dict:
    """Return the record of a run with this config: empty if none began, with ``run`` if it finished."""
    file = folder / _RECORD
    record = json.loads(file.read_text()) if file.exists() else {}
    return record if record.get('text') == text else {}


def _write(folder: Path, content: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_files(folder / _RECORD) as (file,):
        file.write_text(json.dumps(content))


def by_config(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by their config, in the order of the runs."""
    return _grouped(runs, 'config')


def by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by their setting, in the order of the runs."""
    return _grouped(runs, 'setting')


def _grouped(runs: Sequence[Run], attribute: str) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, attribute), []).append(run)
    return groups


def mean_and_std(runs: Sequence[Run], metric: str | None = None) -> tuple[float, float]:
    """Summarize the runs of a config.

    Args:
        runs (Sequence[Run]): The runs.
        metric (str, optional): Name of a metric. Default: the main metric.

    Returns:
        tuple[float, float]: Mean and standard deviation (divided by n - 1; 0 for a single run) of the metric.
    """
    values = [run.metrics[metric or run.main] for run in runs]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def paired_difference(
    runs: Sequence[Run], reference: Sequence[Run], metric: str | None = None
) -> tuple[float, float]:
    """Return by how much a metric differs from that of another config with the same seed.

    Args:
        runs (Sequence[Run]): The runs of a config, at least two.
        reference (Sequence[Run]): The runs of the other one, with the same seeds.
        metric (str, optional): Name of a metric. Default: the main metric.

    Returns:
        tuple[float, float]: Mean of the differences, and half the width of its 95 % confidence interval
        (Student's t).
    """
    from scipy.stats import t  # a dependency of MMDetection

    others = {run.seed: run.metrics[metric or run.main] for run in reference}
    differences = [run.metrics[metric or run.main] - others[run.seed] for run in runs]
    number = len(differences)
    return mean(differences), float(t.ppf(0.975, number - 1)) * stdev(differences) / number**0.5


def draw_sweep(runs: Sequence[Run]) -> 'Figure':
    """Draw a dot for every run, and mean and standard deviation of every config as an error bar.

    With several settings, draw a line over the settings for every config instead.

    Args:
        runs (Sequence[Run]): All runs of a sweep.

    Returns:
        matplotlib.figure.Figure: A figure whose width depends on the number of configs or settings.
    """
    if len(by_setting(runs)) > 1:
        return _draw_settings(runs)
    groups = by_config(runs)
    figure, ((ax,),) = panels(0.8 + 0.7 * len(groups), 2.2)
    for place, group in enumerate(groups.values()):
        ax.plot([place] * len(group), [run.value for run in group], 'o', color=GRAY, alpha=0.6, markersize=4)
        average, deviation = mean_and_std(group)
        ax.errorbar(place + 0.18, average, deviation, fmt='_', color=RED, capsize=3, markersize=8)
    ax.set_xticks(range(len(groups)), groups, rotation=20, ha='right')
    ax.set_xlim(-0.5, len(groups) - 0.3)
    ax.set_ylabel(METRICS.get(runs[0].main, runs[0].main))
    return figure


def _draw_settings(runs: Sequence[Run]) -> 'Figure':
    settings, configs = list(by_setting(runs)), by_config(runs)
    figure, ((ax,),) = panels(2.5 + 0.8 * len(settings), 2.4)
    style = {'fmt': 'o-', 'markersize': 3, 'linewidth': 1, 'capsize': 2}
    for number, (name, group) in enumerate(configs.items()):
        places = [place + 0.06 * (number - (len(configs) - 1) / 2) for place in range(len(settings))]
        values = by_setting(group)
        means, deviations = zip(*(mean_and_std(values[setting]) for setting in settings), strict=True)
        ax.errorbar(places, means, deviations, color=f'C{number}', label=name, **style)
    ax.set_xticks(range(len(settings)), settings)
    ax.set_ylabel(METRICS.get(runs[0].main, runs[0].main))
    figure.legend(loc='outside right center', fontsize=TEXT, frameon=False)
    return figure
