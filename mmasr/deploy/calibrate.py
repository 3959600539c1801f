"""Find which attention of a trained network can be folded, and measure the cost on the data of its config."""

import dataclasses
from collections.abc import Iterable

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.utils.data import DataLoader

from ..errors import InputError, as_input_error, shortened
from ..openmmlab.evaluation import Track, build_loader, calibration_dataset, evaluate, main_metric, untracked
from ..stripes.fold_attention import largest_count
from ..stripes.mean_fold import Constant, find_hosts, replaced
from ..stripes.observer import Observer, Stripes
from .compare import network_outputs


@dataclasses.dataclass
class Calibration:
    """Options for folding attention after training.

    Attributes:
        images (int): Number of training images to average the attention over. Default: 200.
        max_drop (float, optional): Fold as many modules as possible without losing more than this many
            percentage points of the main metric, the steadiest modules first. Default: fold all that can be
                folded.

    Raises:
        InputError: If there are fewer than two images, or ``max_drop`` is negative.
    """

    images: int = 200
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(f'`images` {self.images}: the mean needs at least two images; use a few hundred')
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f'`max_drop` {self.max_drop}: give the points that may be lost, at least 0')


@dataclasses.dataclass
class MeanFold:
    """The attention modules of a network to fold, and measurements of them.

    Attributes:
        stripes (dict[str, Stripes]): Statistics of every module that ran, over the calibration images.
        means (dict[str, Tensor]): Modules to fold -> their mean attention values, (C,).
        hosts (dict[str, str]): Modules to fold -> the layer that takes the values.
        staying (dict[str, str]): Other modules -> why they stay.
        before (dict[str, float]): Metrics of the trained network on the test data.
        metric (str): The main metric.
        loader (DataLoader): The test data.
    """

    stripes: dict[str, Stripes]
    means: dict[str, torch.Tensor]
    hosts: dict[str, str]
    staying: dict[str, str]
    before: dict[str, float]
    metric: str
    loader: DataLoader

    def constants(self, names: Iterable[str] | None = None) -> dict[str, nn.Module]:
        """Return a module with constant values for each module to fold, or for those with some names."""
        return {name: Constant(self.means[name]) for name in (self.means if names is None else names)}


def to_percentage_points(metric: str, value: float) -> float:
    """Convert a metric to percentage points.

    Args:
        metric (str): Its name. MMPretrain's metrics already are percentages, MMDetection's are fractions.
        value (float): Its value.

    Returns:
        float: Percentage points.
    """
    return value if metric.startswith(('accuracy/', 'single-label/', 'multi-label/')) else 100 * value


def calibrate(model: nn.Module, config: Config, options: Calibration, track: Track = untracked) -> MeanFold:
    """Find the attention modules that can be folded, average their values, and select modules by the cost.

    Args:
        model (nn.Module): The trained network, on the CPU; afterwards unchanged.
        config (Config): Its config, with training data, test data and a test evaluator.
        options (Calibration): How much to fold.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        MeanFold: What to fold.

    Raises:
        InputError: If the network has no attention that depends on its input, if none of it can be folded
            within ``max_drop``, or if the data cannot be used.
    """
    if not config.get('test_evaluator'):
        raise InputError('the config has no test_evaluator to measure with')
    device = get_device()
    with Observer(model) as observer:
        loader = build_loader(config, calibration_dataset(config), options.images)
        test_loader = build_loader(config)
        evaluate(model.to(device), loader, [], track, 'calibrating')
    never = observer.check()
    stripes = observer.stripes
    means = {name: s.v.mean.float() for name, s in stripes.items()}
    with as_input_error('the network does not run on noise images'):
        hosts, staying = find_hosts(model.cpu(), means, lambda: network_outputs(model))
    staying.update(dict.fromkeys(never, 'it never ran'))
    if not hosts:
        name = next(iter(staying))
        raise InputError(
            f'no attention module can be folded: {shortened(list(staying))}; {name}: {staying[name]}'
        )

    before = evaluate(model.to(device), test_loader, config.test_evaluator, track, 'evaluating')
    metric = main_metric(config, before)
    order = sorted(hosts, key=lambda name: stripes[name].summary()['median_std'])
    result = MeanFold(stripes, means, hosts, staying, before, metric, test_loader)

    def drop(count: int) -> float:
        constants = {name: module.to(device) for name, module in result.constants(order[:count]).items()}
        description = f'evaluating, {count} of {len(order)} folded'
        with replaced(model, constants):
            after = evaluate(model, test_loader, config.test_evaluator, track, description)
        return to_percentage_points(
            metric, before[metric] - after.get(metric, 0)
        )  # no metric without detections

    count = len(order)
    if options.max_drop is not None:
        count = largest_count(count, lambda count: drop(count) <= options.max_drop)
        problem = f'loses more than {options.max_drop} points of {metric}'
        if not count:
            raise InputError(f'folding even the steadiest module alone, {order[0]}, {problem}')
        staying.update(dict.fromkeys(order[count:], f'folding one more {problem}'))
    model.cpu()
    result.means = {name: means[name] for name in hosts if name in order[:count]}
    result.hosts = {name: hosts[name] for name in result.means}
    return result
