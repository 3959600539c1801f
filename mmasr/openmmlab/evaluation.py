"""Functions that run or evaluate a network on the data of a config."""

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

from ..errors import InputError, as_input_error
from .config import default_scope
from .data_sources import EMPTY, loading_data, name_images

#: Metrics that are percentages: those of MMPretrain and MMSegmentation, and panoptic ones. Others are
#: fractions.
_PERCENTAGES = (
    *('accuracy/', 'single-label/', 'multi-label/', 'retrieval/', 'coco_panoptic/'),
    *('aAcc', 'mIoU', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'),
)
#: A function such as ``rich.progress.track``.
Track = Callable[..., Iterable]


def untracked(items: Iterable, description: str = '') -> Iterable:
    """Return the items: a replacement of ``rich.progress.track`` that shows nothing.

    Args:
        items (Iterable): Any items.
        description (str): Not used. Default: ``''``.

    Returns:
        Iterable: ``items``.
    """
    return items


def quiet() -> contextlib.AbstractContextManager:
    """Suppress standard output: pycocotools prints whenever it loads or evaluates, others when imported."""
    return contextlib.redirect_stdout(io.StringIO())


def build_loader(
    config: Config, dataset: dict | None = None, images: int | None = None, batch_size: int | None = None
) -> DataLoader:
    """Build the test dataloader of a config, which contains every image once.

    If there are several processes, each gets a part of the images.

    Args:
        config (Config): A config with a ``test_dataloader``.
        dataset (dict, optional): Config of another dataset to use. Default: None, the one of the test
            dataloader.
        images (int, optional): Number of images to draw at random; the images and their order are always the
            same. Default: None, all images in the order of the dataset.
        batch_size (int, optional): Largest batch size. Default: None, that of the test dataloader.

    Returns:
        DataLoader: The dataloader. Its attribute ``metainfo`` is that of the dataset.

    Raises:
        InputError: If the config has no test data, or the data does not build or is empty.
    """
    settings = config.get('test_dataloader')
    if not settings or not isinstance(settings, dict):
        raise InputError('the config has no test_dataloader to take images from')
    init_default_scope(default_scope(config))
    with loading_data("the config's data does not load"):
        with quiet():
            data = DATASETS.build(dataset or settings.get('dataset'))
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
        settings = {**settings, 'dataset': data, 'sampler': sampler}
        if batch_size is not None:
            settings['batch_size'] = min(batch_size, settings['batch_size'])
        loader = Runner.build_dataloader(settings, seed=0)
    loader.metainfo = metainfo
    return loader


def calibration_dataset(config: Config) -> dict:
    """Return the config of the training data as the network sees images at inference.

    It has the pipeline of the test data, and no wrappers that repeat or mix images. Deployed configs have it
    as ``calibration_dataset`` in place of their training data.

    Raises:
        InputError: If the config lacks training or test data, or a dataset in them is not a dict.
    """
    if isinstance(config.get('calibration_dataset'), dict):
        return config.calibration_dataset.to_dict()
    if any(
        not isinstance((config.get(part) or {}).get('dataset'), dict)
        for part in ('train_dataloader', 'test_dataloader')
    ):
        raise InputError(
            'the config has no train_dataloader and test_dataloader, which calibration and evaluation need'
        )
    pipeline = _innermost_pipeline(config.test_dataloader.dataset)
    return _unwrapped(config.train_dataloader.dataset.to_dict(), pipeline)


def _innermost_pipeline(dataset: dict) -> Any:
    """Return the pipeline of the first dataset inside all wrappers."""
    _check_dict(dataset)
    inner = dataset.get('dataset') or dataset.get('datasets')
    if not inner:
        return dataset.get('pipeline')
    return _innermost_pipeline(inner[0] if isinstance(inner, list | tuple) else inner)


def _unwrapped(dataset: dict, pipeline: Any) -> dict:
    """Return a dataset's config with another pipeline and without wrappers; only concatenations stay."""
    _check_dict(dataset)
    if isinstance(dataset.get('datasets'), list | tuple):
        return {**dataset, 'datasets': [_unwrapped(inner, pipeline) for inner in dataset['datasets']]}
    if 'dataset' in dataset:
        return _unwrapped(dataset['dataset'], pipeline)
    return {**dataset, 'pipeline': pipeline}


def _check_dict(dataset: object) -> None:
    if not isinstance(dataset, dict):
        raise InputError(f'each dataset of the config must be a dict, not {dataset!r}')


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    evaluator: dict | list,
    track: Track = untracked,
    description: str = 'evaluating',
) -> dict[str, float]:
    """Evaluate a network in eval mode on all images of a loader, on the network's device.

    Args:
        model (nn.Module): A model of OpenMMLab.
        loader (DataLoader): A loader of :func:`build_loader`.
        evaluator (dict | list): Config of the metrics; with an empty list the network only runs.
        track (callable): Progress display like ``rich.progress.track``. Default: none.
        description (str): Text for the progress display and for errors. Default: ``'evaluating'``.

    Returns:
        dict[str, float]: Name of a metric -> value.

    Raises:
        InputError: If an image can't be read, the network fails on an image, or a metric is unknown or fails.
    """
    model.eval()
    with as_input_error(f'{description} failed'):
        with quiet():
            metrics = Evaluator(evaluator)
        metrics.dataset_meta = loader.metainfo
        for batch in track(loader, description=description):
            metrics.process(data_samples=model.test_step(batch), data_batch=batch)
        with quiet():
            return metrics.evaluate(len(loader.dataset))


def main_metric(config: Config, metrics: dict[str, float]) -> str:
    """Return the metric that selects a config's best checkpoint, or else mIoU or the first metric.

    Args:
        config (Config): The config, perhaps with ``default_hooks.checkpoint.save_best``.
        metrics (dict[str, float]): Name of a metric -> value.

    Returns:
        str: A name in ``metrics``.

    Raises:
        InputError: If there are no metrics.
    """
    if not metrics:
        raise InputError(f'{config.filename or "the config"}: its evaluator returns no metrics')
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    best = hook.get('save_best')
    best = best[0] if isinstance(best, list) and best else best
    if isinstance(best, str) and best in metrics:
        return best
    return 'mIoU' if 'mIoU' in metrics else next(iter(metrics))


def to_percentage_points(metric: str, value: float) -> float:
    """Convert a metric to percentage points.

    Args:
        metric (str): Its name.
        value (float): Its value.

    Returns:
        float: Percentage points.
    """
    return value if metric.startswith(_PERCENTAGES) else 100 * value
