"""Which attention of a trained network can be folded, and what that costs, measured on the data of its config."""

import dataclasses
from collections.abc import Iterable

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn
from torch.utils.data import DataLoader

from ..errors import InputError, one_line, some
from ..openmmlab.evaluation import Track, build_loader, calibration_dataset, evaluate, main_metric, untracked
from ..stripes.mean_fold import Constant, find_hosts, replaced
from ..stripes.observer import Observer, Stripes
from .compare import network_outputs


@dataclasses.dataclass
class Calibration:
    """How attention is to be folded after training.

    Attributes:
        images (int): Number of images of the training data that means are taken over.
        max_drop (float, optional): Fold as many modules as lose at most this many points (hundredths) of the main metric, the
            steadiest first. Default: all that can be folded.

    Raises:
        InputError: If there are less than two images, or ``max_drop`` is negative.
    """

    images: int = 200
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InputError(f'`images` {self.images}: the mean needs two images at least, better some hundred')
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f'`max_drop` {self.max_drop}: give the points that may be lost, 0 or more')


@dataclasses.dataclass
class MeanFold:
    """The attention modules of a network that are to be folded, and what that was found to cost.

    Attributes:
        stripes (dict[str, Stripes]): Of every module that ran, over the calibration images.
        means (dict[str, Tensor]): The modules to fold -> their mean values.
        hosts (dict[str, str]): The same -> the layer that takes the values.
        staying (dict[str, str]): The other modules -> why they stay.
        before (dict[str, float]): Metrics of the trained network on the test data.
        metric (str): The main one.
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
        """A module with constant values for each module to fold, or for some of them."""
        return {name: Constant(self.means[name]) for name in (self.means if names is None else names)}


def points(metric: str, value: float) -> float:
    """A metric in points: MMPretrain counts in hundredths, MMDetection in shares of one."""
    return value if metric.startswith(('accuracy/', 'single-label/', 'multi-label/')) else 100 * value


def calibrate(model: nn.Module, config: Config, options: Calibration, track: Track = untracked) -> MeanFold:
    """Find the attention modules that can be folded, take their means, and choose by what folding costs.

    Args:
        model (nn.Module): The trained network, on the CPU; afterwards as it was.
        config (Config): Its config, with training data, test data and test evaluator.
        options (Calibration): How much to fold.
        track (callable): As ``rich.progress.track``. Default: nothing is shown.

    Returns:
        MeanFold: What to fold.

    Raises:
        InputError: If the network has no attention that depends on its input, or none that can be folded within
            ``max_drop``, or the data can't be used.
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
    try:
        hosts, staying = find_hosts(model.cpu(), means, lambda: network_outputs(model))
    except Exception as error:  # of whatever the config asks for
        raise InputError(one_line('the network does not run on noise images', error)) from error
    staying.update(dict.fromkeys(never, 'it never ran'))
    if not hosts:
        name = next(iter(staying))
        raise InputError(f'no attention module can be folded: {some(list(staying))}; {name}: {staying[name]}')

    before = evaluate(model.to(device), test_loader, config.test_evaluator, track, 'evaluating')
    metric = main_metric(config, before)
    order = sorted(hosts, key=lambda name: stripes[name].summary()['median_std'])
    result = MeanFold(stripes, means, hosts, staying, before, metric, test_loader)

    def drop(count: int) -> float:
        with replaced(model, {name: module.to(device) for name, module in result.constants(order[:count]).items()}):
            after = evaluate(model, test_loader, config.test_evaluator, track, f'evaluating, {count} of {len(order)} folded')
        return points(metric, before[metric] - after.get(metric, 0))  # no detections at all have no metric

    kept = len(order)
    if options.max_drop is not None and drop(kept) > options.max_drop:
        kept, too_many = 0, kept
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            kept, too_many = (middle, too_many) if drop(middle) <= options.max_drop else (kept, middle)
        if not kept:
            raise InputError(
                f'folding even {order[0]} alone, the steadiest, loses more than {options.max_drop} points of {metric}'
            )
        staying.update(dict.fromkeys(order[kept:], f'folding more would lose more than {options.max_drop} points of {metric}'))
    model.cpu()
    result.means = {name: means[name] for name in hosts if name in order[:kept]}
    result.hosts = {name: hosts[name] for name in result.means}
    return result
