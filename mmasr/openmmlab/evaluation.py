"""The data of a config, for a network to run on or to be evaluated on."""

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..errors import InputError, one_line
from .data_sources import EMPTY, name_images

Track = Callable[..., Iterable]


def untracked(items: Iterable, description: str = '') -> Iterable:
    """Takes the place of ``rich.progress.track`` where nobody watches."""
    return items


def quiet() -> contextlib.AbstractContextManager:
    """Hold back what pycocotools prints each time that it loads or evaluates, and other packages when they are imported."""
    return contextlib.redirect_stdout(io.StringIO())


def build_loader(config: Config, dataset: dict | None = None, images: int | None = None) -> DataLoader:
    """Build the test dataloader of a config: every image once, split over the processes if there are several.

    Args:
        config (Config): With a ``test_dataloader``.
        dataset (dict, optional): Config of another dataset to take instead of its own.
        images (int, optional): Draw this many of the images, always the same ones and in the same random order. Default: all,
            in the dataset's order.

    Returns:
        DataLoader: Its ``metainfo`` is the dataset's.

    Raises:
        InputError: If the config has no test data, it does not build, or it is empty.
    """
    settings = config.get('test_dataloader')
    if not settings:
        raise InputError('the config has no test_dataloader to take images from')
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        with quiet():
            data = DATASETS.build(dataset or settings['dataset'])
            if hasattr(data, 'full_init'):
                data.full_init()
        metainfo = getattr(data, 'metainfo', None)
        if not len(data):
            raise InputError(EMPTY)
        name_images(data)
        if images is not None:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
            data = Subset(data, order[:images].tolist())
        sampler = {'type': 'mmengine.DefaultSampler', 'shuffle': False, 'round_up': False}
        loader = Runner.build_dataloader({**settings, 'dataset': data, 'sampler': sampler}, seed=0)
    except InputError:
        raise
    except Exception as error:  # of whatever the config asks for
        if 'need at least one array to concatenate' in str(error):  # how mmengine's datasets say it
            raise InputError(EMPTY) from None
        raise InputError(one_line("the config's data does not load", error)) from error
    loader.metainfo = metainfo
    return loader


def calibration_dataset(config: Config) -> dict:
    """The training data of a config as the network meets images when it is used: with the pipeline of the test data, and
    without the wrappers that repeat or mix images.

    Raises:
        InputError: If the config lacks training or test data.
    """
    if any(not isinstance((config.get(part) or {}).get('dataset'), dict) for part in ('train_dataloader', 'test_dataloader')):
        raise InputError('the config has no train_dataloader and test_dataloader, which calibration and evaluation need')

    def pipeline(dataset: dict) -> Any:
        inner = dataset.get('dataset') or dataset.get('datasets')
        if not inner:
            return dataset.get('pipeline')
        return pipeline(inner[0] if isinstance(inner, list | tuple) else inner)

    def used(dataset: dict) -> dict:
        if 'datasets' in dataset:
            return {**dataset, 'datasets': [used(inner) for inner in dataset['datasets']]}
        if 'dataset' in dataset:
            return used(dataset['dataset'])
        return {**dataset, 'pipeline': pipeline(config.test_dataloader.dataset)}

    return used(config.train_dataloader.dataset.to_dict())


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, evaluator: dict | list, track: Track = untracked, description: str = 'evaluating'
) -> dict[str, float]:
    """Run a network in eval mode on all images of a loader, on the device that it is on, and evaluate it.

    Args:
        model (nn.Module): A model of OpenMMLab.
        loader (DataLoader): As of :func:`build_loader`.
        evaluator (dict | list): Config of its metrics; an empty list to run it only.
        track (callable): As ``rich.progress.track``. Default: nothing is shown.
        description (str): What it shows.

    Returns:
        dict[str, float]: Metrics by name.

    Raises:
        InputError: If an image can't be read, the network does not run on one, or a metric is unknown or can't be computed.
    """
    model.eval()
    try:
        with quiet():
            metrics = Evaluator(evaluator)
        metrics.dataset_meta = loader.metainfo
        for batch in track(loader, description=description):
            metrics.process(data_samples=model.test_step(batch), data_batch=batch)
        with quiet():
            return metrics.evaluate(len(loader.dataset))
    except InputError:
        raise
    except Exception as error:  # of whatever the config asks for
        raise InputError(one_line(f'{description} failed', error)) from error


def main_metric(config: Config, metrics: dict[str, float]) -> str:
    """The metric that a config saves its best checkpoint by, or the first that is measured.

    Raises:
        InputError: If there is none.
    """
    if not metrics:
        raise InputError(f'{config.filename or "the config"}: its evaluator gives no metric')
    chosen = config.get('default_hooks', {}).get('checkpoint', {}).get('save_best')
    chosen = chosen[0] if isinstance(chosen, list) else chosen
    return chosen if chosen in metrics else next(iter(metrics))
