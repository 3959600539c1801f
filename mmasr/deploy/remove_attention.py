"""Remove attention from a trained network on the data of its config, and measure what that costs there."""

import dataclasses

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.utils.data import DataLoader

from ..errors import InputError, as_input_error
from ..openmmlab.data_sources import check_data
from ..openmmlab.evaluation import (
    Track,
    build_loader,
    calibration_dataset,
    evaluate,
    main_metric,
    to_percentage_points,
    untracked,
)
from ..stripes.fold_attention import TOLERANCE, AttentionReport, fold_attention
from .compare import raw_outputs

#: Batches for Adam to take steps with. Those of a test dataloader may be large.
_BATCHES = 20


@dataclasses.dataclass
class Removal:
    """Options for removing attention from a trained network.

    Attributes:
        images (int): Number of training images, whose labels are not used. Default: 1000.
        epochs (int): Epochs of distillation. Default: 5.
        weights (bool): Whether to distill all weights, not only the constants. Default: False.
        tolerance (float): See :func:`mmasr.fold_attention`. Default: 0.02.
        max_drop (float, optional): Percentage points of the main metric that may be lost on the test data, in
            place of the tolerance. Default: none.

    Raises:
        InputError: If one of them is too small.
    """

    images: int = 1000
    epochs: int = 5
    weights: bool = False
    tolerance: float = TOLERANCE
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(f'`images` {self.images}: use a few hundred, at least two')
        if self.epochs < 0:
            raise InputError(f'`epochs` {self.epochs}: at least 0')
        for name in ('tolerance', 'max_drop'):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f'`{name}` {value}: at least 0')


@dataclasses.dataclass
class RemovedAttention:
    """Result of :func:`remove_attention`.

    Attributes:
        report (AttentionReport): What was removed, and what stays.
        before (dict[str, float]): Metrics of the trained network on the test data.
        metric (str): The main metric.
        loader (DataLoader): The test data.
    """

    report: AttentionReport
    before: dict[str, float]
    metric: str
    loader: DataLoader


def remove_attention(
    model: nn.Module, config: Config, options: Removal, track: Track = untracked
) -> RemovedAttention:
    """Remove attention from a trained network, in place.

    Args:
        model (nn.Module): The trained network, on the CPU, without re-parameterization.
        config (Config): Its config, with training data, test data and a test evaluator.
        options (Removal): How much to remove, and how.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        RemovedAttention: What was removed.

    Raises:
        InputError: If the network has no attention that can be removed, or none within the limits; or if the
            data cannot be used. The network is then unchanged.
    """
    images, loader = calibration_and_test_data(config, options.images)
    model.to(get_device())
    before = evaluate(model, loader, config.test_evaluator, track)
    metric = main_metric(config, before)

    def is_good_enough(student: nn.Module) -> bool:
        after = evaluate(student, loader, config.test_evaluator, track)
        lost = before[metric] - after.get(metric, 0)  # without detections there is no metric
        return to_percentage_points(metric, lost) <= options.max_drop

    try:
        with as_input_error('removing attention failed'):
            report = fold_attention(
                model,
                track(images, 'loading images'),
                forward=outputs_of_batch,
                tolerance=options.tolerance,
                epochs=options.epochs,
                weights=options.weights,
                accept=None if options.max_drop is None else is_good_enough,
                capture=False,
                track=track,
            )
    finally:
        model.cpu()
    if not report.removed:
        effects = {name: m.effect for name, m in report.modules.items() if m.effect is not None}
        name = min(effects, key=effects.get)
        limit = f'exceeds the tolerance of {options.tolerance:.2%}'
        if options.max_drop is not None:
            limit = f'loses more than {options.max_drop} points of {metric}'
        raise InputError(f'removing even the attention module that matters least, {name}, {limit}')
    return RemovedAttention(report, before, metric, loader)


def check_calibration_data(config: Config) -> None:
    """Check that the data for calibration and evaluation exists; see :func:`check_data`.

    Raises:
        InputError: If it does not, or there is no evaluator.
    """
    if not config.get('test_evaluator'):
        raise InputError('the config has no test_evaluator to measure with')
    check_data(config, 'train_dataloader', 'calibration_dataset', 'test_dataloader', 'test_evaluator')


def calibration_and_test_data(config: Config, images: int) -> tuple[DataLoader, DataLoader]:
    """Check and load the data for calibration and evaluation.

    Args:
        config (Config): A config with training data, test data and a test evaluator.
        images (int): Number of training images.

    Returns:
        tuple[DataLoader, DataLoader]: The training images, in enough batches to distill with; and the test
        data.

    Raises:
        InputError: If the data cannot be used.
    """
    check_calibration_data(config)
    batch_size = max(1, images // _BATCHES)
    return build_loader(config, calibration_dataset(config), images, batch_size), build_loader(config)


def outputs_of_batch(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    """Return the raw outputs of a network of OpenMMLab.

    Args:
        model (nn.Module): The network.
        batch (dict): A batch of a dataloader.

    Returns:
        dict[str, Tensor]: See :func:`mmasr.deploy.compare.raw_outputs`.
    """
    data = model.data_preprocessor(batch, False)
    return raw_outputs(model, data['inputs'], data['data_samples'])
