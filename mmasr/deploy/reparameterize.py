"""Deploy a trained checkpoint: load, run, fold, write, verify.

The deployed files are a config without re-parameterization and weights that load into it. They are moved into
place only after the network built from them agrees with the trained one.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.device import get_device
from torch import nn

from ..core.bias_fusion import fuse_biases
from ..core.class_surgery import stock_class
from ..core.differences import BOUNDS, Difference, check_differences, coarsest, compare
from ..core.foldable import Foldable, find_foldable, fold_all
from ..core.merge import foreign_blocks, is_foreign
from ..core.merge_check import check_merges
from ..core.verification import LayerDifference, TrainedLayers
from ..errors import InputError, as_input_error, shortened, with_source
from ..files import output_files, temporary_files
from ..openmmlab.adapters import mergeable_networks
from ..openmmlab.evaluation import Track, evaluate, untracked
from ..untrusted import Network, Origin, open_checkpoint, write_config
from .compare import IMAGES, images_for, network_outputs
from .config_check import check_deployed_config
from .deployed_config import deployed_config
from .remove_attention import Removal, RemovedAttention, check_calibration_data, remove_attention
from .saving import write_checkpoint
from .semi_supervised import predicting_part


@dataclasses.dataclass
class Report:
    """Result of :func:`reparameterize`.

    Attributes:
        checkpoint (Path): The deployed checkpoint.
        config (Path): Its config.
        folded (dict[str, str]): Hosts, and ASRs that were plugins -> what was folded there, such as ``SE``.
        merged (dict[str, str]): Modules whose branches were merged -> their class.
        ours (dict[str, str]): Those of them that became layers of mmasr, which the deployed config imports ->
            class.
        parameters (tuple[int, int]): Number of parameters before and after.
        bytes (tuple[int, int]): Size of the checkpoint files before and after, in bytes.
        worst_layer (LayerDifference, optional): The folded layer that differs most from the trained one.
        differences (list[Difference]): Differences of the two networks, output by output, before attention is
            removed.
        bound (float): Largest difference allowed, relative to the largest value of an output.
        seconds (float): Duration.
        config_changes (list[str]): The parts of the model in which the deployed config differs from the
            trained one, such as ``model.backbone.type``; first the detector that was taken out of a
            semi-supervised one.
        stays (dict[str, str]): Networks whose blocks could not be merged -> why.
        left_out (dict[str, str]): Parts of the embedded config that the deployed one does not have -> why.
        attention (RemovedAttention, optional): The attention that was removed, if that was asked for.
        after (dict[str, float], optional): Metrics of the deployed network in that case.
    """

    checkpoint: Path
    config: Path
    folded: dict[str, str]
    merged: dict[str, str]
    ours: dict[str, str]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    worst_layer: LayerDifference | None
    differences: list[Difference]
    bound: float
    seconds: float
    config_changes: list[str]
    stays: dict[str, str]
    left_out: dict[str, str]
    attention: RemovedAttention | None = None
    after: dict[str, float] | None = None


def reparameterize(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust_imports: bool = False,
    removal: Removal | None = None,
    track: Track = untracked,
) -> Report:
    """Fold all re-parameterization of a checkpoint, verify the result, and write it with its config.

    Args:
        checkpoint (str | Path): A checkpoint of mmengine's runner, or weights.
        config (str | Path, optional): The config it was trained with. Default: the one in the checkpoint,
            which is parsed as data, reduced to what deploying needs, and checked with an allow-list.
        out (str | Path, optional): The deployed checkpoint, ``*.pth``; its config is written next to it as
            ``*.py``. Default: ``<name>_deploy.pth`` next to the input.
        force (bool): Replace existing files. Default: False.
        trust_imports (bool): Run all ``custom_imports`` of the embedded config, and allow the classes that
            they register. Default: False.
        removal (Removal, optional): Also remove attention that depends on the image. The network is then
            evaluated before and after. Default: such attention stays.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Returns:
        Report: What was folded, and how well the networks agree.

    Raises:
        InputError: If the input cannot be used, or the deployed network differs. Then nothing is written.

    Example:
        >>> report = reparameterize('epoch_12.pth')
        >>> report.checkpoint.name, report.config.name
        ('epoch_12_deploy.pth', 'epoch_12_deploy.py')
        >>> max(difference.relative for difference in report.differences) < report.bound
        True
    """
    start = time.perf_counter()
    source = Path(checkpoint)
    opened = open_checkpoint(source)
    inputs = [source, *([config] if config else [])]
    targets = output_files(inputs, out or source.with_name(f'{source.stem}_deploy.pth'), force)
    if 'mmasr' in opened.content['meta'] and not removal:
        raise InputError(f'{source} is already deployed: its re-parameterization is folded')
    with temporary_files(*targets, force=force) as files:
        # The trained network and its checkpoint are gone before another one is built from the files.
        deployed = _deploy(opened.network(config, trust_imports, bool(removal)), files, removal, track)
        worst_layer, differences, after = _verify(deployed, files, track)
        size = files[0].stat().st_size
    return Report(
        checkpoint=targets[0],
        config=targets[1],
        folded=deployed.folded,
        merged=deployed.merged,
        ours=deployed.ours,
        parameters=deployed.parameters,
        bytes=(source.stat().st_size, size),
        worst_layer=worst_layer,
        differences=differences,
        bound=deployed.bound,
        seconds=time.perf_counter() - start,
        config_changes=deployed.config_changes,
        stays=deployed.stays,
        left_out=deployed.origin.left_out or {},
        attention=deployed.attention,
        after=after,
    )


@dataclasses.dataclass
class _Deployed:
    """A deployed network whose files are written, and what verifying them needs.

    Attributes:
        origin (Origin): The limits of the network.
        images (Sequence[tuple[int, float]]): The images it ran on; see :func:`network_outputs`.
        expected (dict[str, Tensor]): Outputs of the trained network on them.
        rounded (dict[str, Tensor]): Outputs of the folded network, rounded to the types of the checkpoint; if
            nothing is rounded, those of the trained network.
        bound (float): Largest difference from the trained network allowed.
        config (dict): The deployed config.
        config_changes (list[str]): See :class:`Report`.
        stays (dict[str, str]): See :class:`Report`.
        folded, merged, ours (dict[str, str]): See :class:`Report`.
        parameters (tuple[int, int]): Number of parameters before and after.
        layers (TrainedLayers): The trained layers, to compare the folded ones with.
        meta (dict): The ``meta`` of the trained checkpoint.
        compared (tuple[LayerDifference | None, list[Difference]], optional): Differences that folding made
            before attention was removed; None if it was not.
        attention (RemovedAttention, optional): The attention that was removed.
        evaluator (dict | list, optional): Config of the metrics to evaluate it with.
    """

    origin: Origin
    images: Sequence[tuple[int, float]]
    expected: dict[str, torch.Tensor]
    rounded: dict[str, torch.Tensor]
    bound: float
    config: dict
    config_changes: list[str]
    stays: dict[str, str]
    folded: dict[str, str]
    merged: dict[str, str]
    ours: dict[str, str]
    parameters: tuple[int, int]
    layers: TrainedLayers
    meta: dict
    compared: tuple[LayerDifference | None, list[Difference]] | None
    attention: RemovedAttention | None
    evaluator: dict | list | None


def _deploy(trained: Network, files: Sequence[Path], removal: Removal | None, track: Track) -> _Deployed:
    """Run the trained network, fold it, remove its attention if asked to, and write its files."""
    trained, part_changes = predicting_part(trained)
    model, origin = trained.model, trained.origin
    foldable, stays = find_deployable(trained)
    if removal:
        check_calibration_data(trained.config)
    elif not foldable:
        why = ''.join(f'; {name} cannot be merged: {reason}' for name, reason in stays.items())
        raise InputError(f'{origin.source} has no re-parameterization to fold{why}')
    before, images = _count(model), images_for(model)
    compared = attention = None
    with origin.limits():
        expected = _run(model, foldable, origin.source, images)
        layers = TrainedLayers(model, foldable, trained.weights)
        folded = {name: part.describe() for name, part in foldable.reparameterizations().items()}
        merged = {
            name: stock_class(type(module)).__name__
            for name, module in model.named_modules()
            if name in foldable.branches
        }
        with with_source(origin.source):
            layers.fused = _fold(model, foldable)
            bound = BOUNDS[coarsest(map(layers.dtype, layers.references))]
            weights, rounded = _round(model, layers, expected, images)
            if removal:
                compared = _compare(model, weights, layers, images, rounded, expected, bound)
        if removal:
            attention = remove_attention(model, trained.config, removal, track)
            weights = _in_types_of(weights, model)
            model.load_state_dict(weights)
            expected = rounded = _outputs(model, images)
            layers = TrainedLayers(model, Foldable({}, {}, {}), weights)
        with with_source(origin.source):
            with as_input_error('the config has no deployed form'):
                removed = attention.report.removed if attention else []
                config = deployed_config(trained.config, removed, model)
            changes = check_deployed_config(trained.config.to_dict(), config.to_dict())
    became = {name: type(model.get_submodule(name)) for name in merged}
    deployed = _Deployed(
        origin=origin,
        images=images,
        expected=expected,
        rounded=rounded,
        bound=bound,
        config=origin.deployed(config.to_dict()),
        config_changes=part_changes + changes,
        stays=stays,
        folded=folded,
        merged=merged,
        ours={n: kind.__name__ for n, kind in became.items() if kind.__module__.split('.')[0] == 'mmasr'},
        parameters=(before, _count(model)),
        layers=layers,
        meta=trained.meta,
        compared=compared,
        attention=attention,
        evaluator=trained.config.get('test_evaluator'),
    )
    _write(weights, deployed, files)
    return deployed


def _round(
    model: nn.Module,
    layers: TrainedLayers,
    expected: dict[str, torch.Tensor],
    images: Sequence[tuple[int, float]],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Convert the folded network to the types of the checkpoint; return its weights, and its outputs then.

    Rounding may change the outputs by much more than folding does. So the folded network is compared with the
    trained one before, and the network of the written files with the rounded one.
    """
    state, weights = model.state_dict(), layers.stored(model)
    if all(weights[name].dtype == tensor.dtype for name, tensor in state.items()):
        return weights, expected
    check_differences(compare(expected, _outputs(model, images)), BOUNDS[torch.float32])
    model.load_state_dict(weights)
    return weights, _outputs(model, images)


def _in_types_of(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a network in the types of earlier weights, and these themselves if still equal."""
    state = model.state_dict()
    return {
        name: weights[name] if weights[name].to(tensor).equal(tensor) else tensor.to(weights[name].dtype)
        for name, tensor in state.items()
    }


def find_deployable(network: Network) -> tuple[Foldable, dict[str, str]]:
    """Find what deploying a network folds: everything, except blocks that no config builds merged.

    Args:
        network (Network): The trained network.

    Returns:
        tuple[Foldable, dict[str, str]]: What is folded; and the name of each network whose blocks stay -> why
        one of them cannot be merged.

    Raises:
        InputError: If something cannot be folded.
    """
    model = network.model
    with network.origin.limits(), with_source(network.origin.source):  # the check runs the network
        found = find_foldable(model, foreign_blocks(model))
        parts = mergeable_networks(model)
        others = {*foreign_blocks(model)} - {*foreign_blocks(model, parts)} if parts else set()
        problems = check_merges(model, others, _outputs) if parts else {}
    stays = {}
    for part in parts:
        inside = foreign_blocks(model, [part])
        if failed := [name for name in inside if problems.get(name)]:
            stays[part] = f'{failed[0]}: {problems[failed[0]]}'
        else:
            blocks = find_foldable(model, {*foreign_blocks(model)} - {*inside}).branches
            found.branches.update({name: m for name, m in blocks.items() if is_foreign(m)})
    return found, stays


def _run(
    model: nn.Module, foldable: Foldable, source: Path, images: Sequence[tuple[int, float]]
) -> dict[str, torch.Tensor]:
    """Run the trained network, and check that every re-parameterization took part."""
    parts = foldable.reparameterizations()
    unused = set(parts)

    def used(name: str) -> Callable[..., None]:
        return lambda *_: unused.discard(name)

    hooks = [model.get_submodule(name).register_forward_pre_hook(used(name)) for name in parts]
    try:
        outputs = _outputs(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if unused:
        kinds = ' or '.join(sorted({parts[name].title for name in unused}))
        raise InputError(
            f'{source}: no layer uses the {kinds} of {shortened(sorted(unused))}, so it was not trained'
        )
    return outputs


def _fold(model: nn.Module, foldable: Foldable) -> dict[str, list[str]]:
    """Fold a network, and fuse the biases that its stock form does not have.

    Returns:
        dict[str, list[str]]: Name of a convolution whose bias was fused -> names of the BatchNorms that took
        it.
    """
    without_bias = foldable.without_stock_bias()
    fold_all(model, {*foreign_blocks(model)} - foldable.branches.keys())
    biased = [name for name in without_bias if isinstance(model.get_submodule(name), nn.Conv2d)]
    return fuse_biases(model, biased, lambda: _outputs(model))


def _write(weights: dict[str, torch.Tensor], deployed: _Deployed, files: Sequence[Path]) -> None:
    """Write the folded network: a checkpoint, and its config."""
    with with_source(deployed.origin.source):
        text = write_config(deployed.config)
    record = {
        'source': deployed.origin.source.name,
        'folded': deployed.folded,
        'merged': deployed.merged,
        'attention': _placements(deployed.attention),
    }
    weights_file, config_file = files
    config_file.write_text(text, encoding='utf-8')
    meta = {**deployed.meta, 'mmasr': record, 'cfg': text}
    write_checkpoint({'meta': meta, 'state_dict': weights}, weights_file)


def _placements(attention: RemovedAttention | None) -> dict[str, str]:
    """Return the layers that took the constants of each attention module that was removed."""
    modules = attention.report.modules if attention else {}
    return {name: module.placement for name, module in modules.items() if module.placement}


def _compare(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    layers: TrainedLayers,
    images: Sequence[tuple[int, float]],
    rounded: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    bound: float,
) -> tuple[LayerDifference | None, list[Difference]]:
    """Compare a folded network with the trained one: its tensors, layers and outputs."""
    worst_tensor = layers.check_tensors(model, weights, torch.float32)
    with layers.compared(model) as found:
        outputs = _outputs(model, images)
    worst_layer = layers.check_layers(found)
    check_differences(compare(rounded, outputs), BOUNDS[torch.float32])
    differences = compare(expected, outputs)
    check_differences(differences, bound)
    worst = [difference for difference in (worst_tensor, worst_layer) if difference]
    return max(worst, key=lambda difference: difference.relative, default=None), differences


def _verify(
    deployed: _Deployed, files: Sequence[Path], track: Track
) -> tuple[LayerDifference | None, list[Difference], dict[str, float] | None]:
    """Build a network from the written files, and compare it with the trained one."""
    origin, attention = deployed.origin, deployed.attention
    rebuilt = origin.rebuild(*files, deployed.config)
    with origin.limits():
        with with_source(origin.source):
            _check_meta(deployed.meta, rebuilt.meta)
            worst, differences = _compare(
                rebuilt.model,
                rebuilt.weights,
                deployed.layers,
                deployed.images,
                deployed.rounded,
                deployed.expected,
                deployed.bound,
            )
        if not attention:
            return worst, differences, None
        rebuilt.model.to(get_device())
        description = 'evaluating the deployed network'
        metrics = evaluate(rebuilt.model, attention.loader, deployed.evaluator, track, description)
        return *deployed.compared, metrics


def _check_meta(trained: dict, written: dict) -> None:
    changed = {
        name for name in trained.keys() | written if repr(trained.get(name)) != repr(written.get(name))
    }
    if changed := changed - {'cfg', 'mmasr'}:
        raise InputError(f'the deployed file has other meta data: {shortened(sorted(changed))}')


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _outputs(model: nn.Module, images: Sequence[tuple[int, float]] = (IMAGES,)) -> dict[str, torch.Tensor]:
    with as_input_error('the network does not run on random images'):
        return network_outputs(model, images)
