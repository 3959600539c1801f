"""From a trained checkpoint to a deployed one: a config without re-parameterization, and weights that load into it.

The deployed network is checked against the trained one before anything is written.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..core.absorb import absorb_biases
from ..core.computed import Computed
from ..core.fold import find_foldable, fold
from ..core.host import Host
from ..core.merge import Merging, can_merge, stays_in_files
from ..core.surgery import stock_class
from ..errors import InputError, one_line, some
from ..files import output_files, temporary_files
from ..openmmlab.building import build_model, load_weights
from ..openmmlab.checkpoint import only_data, read_checkpoint, write_checkpoint
from ..openmmlab.data_sources import check_data
from ..openmmlab.evaluation import Track, evaluate, untracked
from ..stripes.mean_fold import fold_means, replaced
from .calibrate import Calibration, MeanFold, calibrate
from .compare import BOUNDS, NOISE, Difference, compare, network_outputs, noises
from .config_text import parse_config, write_config
from .deployed_config import deployed_config
from .network import Network, load_network, said_of
from .untrusted_config import CALIBRATION, check_config


@dataclasses.dataclass
class Report:
    """What :func:`reparameterize` did.

    Attributes:
        checkpoint (Path): The deployed checkpoint.
        config (Path): Its config.
        folded (dict[str, str]): Layers and plugins with an ASR, or whose parameters were computed from something else -> from
            what.
        merged (dict[str, str]): Modules whose branches were merged -> their class.
        ours (dict[str, str]): Those of them that became layers of mmasr, which the deployed config imports -> what they are.
        means (dict[str, str]): Attention modules whose mean was folded -> the layer that took it.
        parameters (tuple[int, int]): Number of parameters before and after.
        bytes (tuple[int, int]): Size of the checkpoint files, before and after.
        differences (list[Difference]): How far the networks are apart, output by output.
        bound (float): What was allowed, relative to the largest value of an output.
        seconds (float): How long it took.
        left_out (dict[str, str]): Parts of the embedded config that the deployed one does not have -> why.
        attention (MeanFold, optional): What was found of attention that depends on its input, if it was to be folded.
        after (dict[str, float], optional): Metrics of the deployed network, likewise.
    """

    checkpoint: Path
    config: Path
    folded: dict[str, str]
    merged: dict[str, str]
    ours: dict[str, str]
    means: dict[str, str]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    differences: list[Difference]
    bound: float
    seconds: float
    left_out: dict[str, str]
    attention: MeanFold | None = None
    after: dict[str, float] | None = None


@only_data()
def reparameterize(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust_imports: bool = False,
    calibration: Calibration | None = None,
    track: Track = untracked,
) -> Report:
    """Fold all re-parameterization of a checkpoint, and on request attention that depends on its input; check the result, and
    write it with its config.

    Args:
        checkpoint (str | Path): A checkpoint of mmengine's runner, or weights.
        config (str | Path, optional): The config it was trained with. Default: the one in the checkpoint, which is read as
            data, reduced to what deploying needs, and held against what is allowed.
        out (str | Path, optional): The deployed checkpoint, ``*.pth``; its config goes beside it as ``*.py``. Default:
            ``<name>_deploy.pth`` beside the input.
        force (bool): Replace what is there. Default: False.
        trust_imports (bool): Run any ``custom_imports`` of the embedded config, and allow what they register. Default: False.
        calibration (Calibration, optional): Fold attention that depends on its input as well, replaced by its mean; the network
            is then evaluated before and after. Default: such attention stays.
        track (callable): As ``rich.progress.track``. Default: nothing is shown.

    Returns:
        Report: What was folded and how well it agrees.

    Raises:
        InputError: If the input can't be used, or the deployed network differs. Then nothing is written.

    Example:
        >>> report = reparameterize('epoch_12.pth')
        >>> report.checkpoint.name, report.config.name
        ('epoch_12_deploy.pth', 'epoch_12_deploy.py')
        >>> max(difference.relative for difference in report.differences) < report.bound
        True
    """
    start = time.perf_counter()
    source = Path(checkpoint)
    loaded = read_checkpoint(source, mmap=True)
    targets = output_files(source, out or source.with_name(f'{source.stem}_deploy.pth'), force)
    if 'mmasr' in loaded['meta'] and not calibration:
        raise InputError(f'{source} is deployed already: what it trained with is folded')
    trained = load_network(source, loaded, config, trust_imports, bool(calibration))
    del loaded
    if calibration:
        check_data(trained.config, 'train_dataloader', 'test_dataloader', 'test_evaluator')
    if not (trained.foldable() or calibration):
        raise InputError(f'{source} has no ASR in it and no branches to merge, so there is nothing to fold')
    before = _count(trained.model)
    attention = None
    if calibration:
        with trained.restrained():
            attention = calibrate(trained.model, trained.config, calibration, track)
    with trained.restrained():
        deployed = _fold(trained, attention)
    after = _count(trained.model)
    trained.model = None  # its memory is for the network that is built from the files
    with temporary_files(*targets, force=force) as files:
        rebuilt, differences = _write_and_verify(trained, deployed, files)
        size = files[0].stat().st_size
        metrics = None
        if attention:
            with trained.restrained():
                rebuilt.to(get_device())
                evaluator = trained.config.test_evaluator
                metrics = evaluate(rebuilt, attention.loader, evaluator, track, 'evaluating the deployed network')
    return Report(
        checkpoint=targets[0],
        config=targets[1],
        folded=deployed.folded,
        merged=deployed.merged,
        ours=deployed.ours,
        means=deployed.means,
        parameters=(before, after),
        bytes=(source.stat().st_size, size),
        differences=differences,
        bound=BOUNDS[trained.coarsest],
        seconds=time.perf_counter() - start,
        left_out=trained.left_out or {},
        attention=attention,
        after=metrics,
    )


@dataclasses.dataclass
class _Deployed:
    """What a trained network becomes.

    Attributes:
        images (Sequence[tuple[int, float]]): What the two are compared on, see :func:`network_outputs`.
        expected (dict[str, Tensor]): What the trained network puts out.
        folded, merged, ours, means (dict[str, str]): As in :class:`Report`.
        config (dict): The deployed config.
        checkpoint (dict): The deployed checkpoint.
    """

    images: Sequence[tuple[int, float]]
    expected: dict[str, torch.Tensor]
    folded: dict[str, str]
    merged: dict[str, str]
    ours: dict[str, str]
    means: dict[str, str]
    config: dict
    checkpoint: dict


def _fold(trained: Network, attention: MeanFold | None) -> _Deployed:
    """Run the trained network, fold it in place, and make its checkpoint and config."""
    model, source = trained.model, trained.source
    images = noises(model)
    with replaced(model, attention.constants() if attention else {}):
        expected, folded = _run_trained(model, source, images)
    merging = {name: module for name, module in model.named_modules() if can_merge(module)}
    stay = [name for name, module in merging.items() if stays_in_files(module)]
    merged = {name: stock_class(type(module)).__name__ for name, module in merging.items() if name not in stay}
    no_bias = [name for name, m in merging.items() if isinstance(m, Merging) and not m.stock_bias]
    del merging  # what has been merged need not stay in memory
    try:
        fold(model, stay)
        too_many_biases = [name for name in no_bias if isinstance(model.get_submodule(name), nn.Conv2d)]
        absorb_biases(model, too_many_biases, functools.partial(_outputs, model))
    except ValueError as error:
        raise InputError(f'{source}: {error}') from None
    became = {name: type(model.get_submodule(name)) for name in merged}
    ours = {name: kind.__name__ for name, kind in became.items() if kind.__module__.split('.')[0] == 'mmasr'}
    means = attention.hosts if attention else {}
    if attention:
        fold_means(model, attention.means, means)
    try:
        config = deployed_config(trained.config, list(means), model).to_dict()
        if trained.left_out is not None:
            config = {name: value for name, value in config.items() if name not in CALIBRATION}
        text = write_config(config)
    except Exception as error:  # a config can be odd in any way
        raise InputError(one_line(f'{source}: its config has no deployed form', error)) from None
    record = {'source': source.name, 'folded': folded, 'merged': merged, 'means': means}
    checkpoint = {
        'meta': {**trained.meta, 'mmasr': record, 'cfg': text},
        # A convolution that branches were merged into is new.
        'state_dict': {
            name: tensor.to(trained.dtypes.get(name, trained.coarsest)) for name, tensor in model.state_dict().items()
        },
    }
    return _Deployed(
        images=images,
        expected=expected,
        folded=folded,
        merged=merged,
        ours=ours,
        means=means,
        config=config,
        checkpoint=checkpoint,
    )


def _write_and_verify(trained: Network, deployed: _Deployed, files: list[Path]) -> tuple[nn.Module, list[Difference]]:
    """Write checkpoint and config, build a network from these files, and compare it with the trained one."""
    weights_file, config_file = files
    config_file.write_text(deployed.checkpoint['meta']['cfg'], encoding='utf-8')
    write_checkpoint(deployed.checkpoint, weights_file)
    deployed.checkpoint = {}
    weights = read_checkpoint(weights_file, mmap=True)['state_dict']
    config = parse_config(config_file.read_text(encoding='utf-8'))
    if repr(config) != repr(deployed.config):  # which are equal where a NaN is
        raise InputError(f'{trained.source}: the deployed config reads back otherwise than it was written')
    if trained.left_out is not None:
        said_of(trained.source, check_config, config, weights, trained.trust_imports)
    with trained.restrained():
        rebuilt = build_model(Config(config))
        load_weights(rebuilt, weights, weights_file.name)
        differences = compare(deployed.expected, _outputs(rebuilt, deployed.images))
    worst = max(differences, key=lambda difference: difference.relative)
    if not worst.relative <= BOUNDS[trained.coarsest]:
        raise InputError(
            f'{trained.source}: the deployed network differs from the trained one: {worst.output} by {worst.relative:.1e} of '
            f'its largest value, more than {BOUNDS[trained.coarsest]:.0e}; nothing was written'
        )
    return rebuilt, differences


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _outputs(model: nn.Module, images: Sequence[tuple[int, float]] = (NOISE,)) -> dict[str, torch.Tensor]:
    try:
        return network_outputs(model, images)
    except Exception as error:  # as can a model
        raise InputError(one_line('the network does not run on noise images', error)) from None


def _run_trained(
    model: nn.Module, source: Path, images: Sequence[tuple[int, float]]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Run the trained network; return its outputs, and what is computed from something with what that is."""
    computed = {
        name: module.computed() if isinstance(module, Host) else module
        for name, module in find_foldable(model).items()
        if isinstance(module, Host | Computed)
    }
    unused = set(computed)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: unused.discard(name)) for name in computed
    ]
    outputs = _outputs(model, images)
    for hook in hooks:
        hook.remove()
    if unused:
        raise InputError(f'{source}: no layer uses the ASR of {some(sorted(unused))}, so it was not trained')
    return outputs, {name: child.describe() for name, child in computed.items()}
