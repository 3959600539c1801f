"""From a trained checkpoint to a deployed one: a config without ASR, and weights that load into it.

The deployed network is checked against the trained one before anything is written.
"""

import dataclasses
import functools
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmpretrain.models.backbones import RepVGG
from torch import nn

from ..convolutions.acnet import ACNet, merge_acnets
from ..core.asr import ASR
from ..core.host import Host, fold
from ..errors import InputError
from ..openmmlab.building import build_model, check_data, load_config, load_weights, one_line, some
from ..openmmlab.checkpoint import output_files, read_checkpoint, temporary_files, write_checkpoint
from ..openmmlab.evaluation import Track, calibration_dataset, evaluate, untracked
from ..stripes.mean_fold import fold_means, replaced
from .calibrate import Calibration, MeanFold, calibrate
from .compare import Difference, compare, network_outputs
from .deployed_config import deploy_config, merges, without_downloads
from .untrusted_config import WAYS_ON, check_config, check_data_config, import_modules, parse_config

#: Largest difference allowed, relative to the largest value of an output, by the coarsest type of the weights. Half
#: precision rounds every folded product again, by up to eps / 2 (5e-4 and 4e-3); its bounds are ten times that, about ten
#: times what was measured on ResNets of 18 to 101 layers.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclasses.dataclass
class Report:
    """What :func:`reparameterize` did."""

    checkpoint: Path
    config: Path
    folded: dict[str, str]  # host -> what it carried
    parameters: tuple[int, int]  # before, after
    bytes: tuple[int, int]  # of the checkpoint files, before and after
    differences: list[Difference]
    bound: float
    seconds: float
    attention: MeanFold | None = None  # what was folded of attention that depends on its input
    after: dict[str, float] | None = None  # metrics of the deployed network, if it was


def reparameterize(
    checkpoint: str | Path,
    config: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust_imports: bool = False,
    calibration: Calibration | None = None,
    track: Track = untracked,
) -> Report:
    """Fold every ASR of a checkpoint, merge the branches of RepVGG and ACNet, and on request fold attention that depends on its
    input; check the result, and write it with its config.

    Args:
        checkpoint (str | Path): A checkpoint of mmengine's runner, or weights.
        config (str | Path, optional): The config it was trained with. Default: the one in the checkpoint, which is read as
            data.
        out (str | Path, optional): The deployed checkpoint, ``*.pth``; its config goes beside it as ``*.py``. Default:
            ``<name>_deploy.pth`` beside the input.
        force (bool): Replace what is there. Default: False.
        trust_imports (bool): Run any ``custom_imports`` of the embedded config. Default: False, only OpenMMLab's.
        calibration (Calibration, optional): Fold attention that depends on its input as well, replaced by its mean; the network
            is then evaluated before and after. Default: such attention stays.
        track (callable): As ``rich.progress.track``. Default: nothing is shown.

    Returns:
        Report: What was folded and how well it agrees.

    Raises:
        InputError: If the input can't be used, or the deployed network differs. Then nothing is written.
    """
    start = time.perf_counter()
    source = Path(checkpoint)
    loaded = read_checkpoint(source, mmap=True)
    targets = output_files(source, out or source.with_name(f'{source.stem}_deploy.pth'), force)

    meta, weights = loaded['meta'], loaded['state_dict']
    if 'mmasr' in meta and not calibration:
        raise InputError(f'{source} is deployed already: its ASR is folded')
    if odd := [name for name, t in weights.items() if t.is_complex() or (t.is_floating_point() and t.dtype not in BOUNDS)]:
        raise InputError(
            f'{source}: weights are {weights[odd[0]].dtype} in {some(odd)}; only float and integer types are known'
        )
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    coarsest = max((dtype for dtype in dtypes.values() if dtype in BOUNDS), key=BOUNDS.get, default=torch.float32)
    bound = BOUNDS[coarsest]

    train_config = _read_config(source, meta, config, trust_imports)
    if calibration:
        check_data(train_config, 'train_dataloader', 'test_dataloader', 'test_evaluator')
        if not config:
            test = train_config.get('test_dataloader'), train_config.get('test_evaluator')
            check_data_config(calibration_dataset(train_config), *test)
    model = build_model(train_config)
    load_weights(model, weights, source)
    if broken := [name for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise InputError(f'{source}: NaN or Inf in {some(broken)}; take an earlier checkpoint')
    rep_vggs = [m for m in model.modules() if isinstance(m, RepVGG) and not m.deploy and merges(m.arch)]
    if not (calibration or rep_vggs or any(isinstance(m, ASR | ACNet) for m in model.modules())):
        raise InputError(f'{source} has no ASR in it and no branches to merge, so there is nothing to fold')
    before = sum(p.numel() for p in model.parameters())
    attention = calibrate(model, train_config, calibration, track) if calibration else None
    with replaced(model, attention.constants() if attention else {}):
        expected, folded = _run_trained(model, source)
    try:
        fold(model)
        merge_acnets(model, functools.partial(_outputs, model))
    except ValueError as error:
        raise InputError(f'{source}: {error}') from None
    for backbone in rep_vggs:
        backbone.switch_to_deploy()
    if attention:
        fold_means(model, attention.means, attention.hosts)
        folded.update({name: f'mean of {attention.stripes[name].kind}, into {host}' for name, host in attention.hosts.items()})
    after = sum(p.numel() for p in model.parameters())
    deployed = {
        'meta': {
            **{key: value for key, value in meta.items() if key not in ('cfg', 'hook_msgs')},
            'mmasr': {'source': source.name, 'folded': folded},
        },
        # A convolution that branches were merged into is new.
        'state_dict': {name: tensor.to(dtypes.get(name, coarsest)) for name, tensor in model.state_dict().items()},
    }
    try:
        text = deploy_config(train_config, list(attention.hosts) if attention else [], model).pretty_text
    except Exception as error:  # mmengine does not write every config it can hold
        raise InputError(one_line(f"{source}: the deployed config can't be written", error)) from None
    deployed['meta']['cfg'] = text
    del model, loaded, weights
    metrics = None
    with temporary_files(*targets) as (weights_file, config_file):
        config_file.write_text(text)
        write_checkpoint(deployed, weights_file)
        size = weights_file.stat().st_size
        del deployed
        rebuilt = build_model(Config(parse_config(config_file.read_text())))
        load_weights(rebuilt, read_checkpoint(weights_file, mmap=True)['state_dict'], targets[0])
        differences = compare(expected, _outputs(rebuilt))
        worst = max(differences, key=lambda d: d.relative)
        if not worst.relative <= bound:
            raise InputError(
                f'{source}: the deployed network differs from the trained one: {worst.output} by {worst.relative:.1e} of its '
                f'largest value, more than {bound:.0e}; nothing was written'
            )
        if attention:
            rebuilt.to(get_device())
            metrics = evaluate(rebuilt, attention.loader, train_config.test_evaluator, track, 'evaluating the deployed network')
    return Report(
        *targets,
        folded,
        (before, after),
        (source.stat().st_size, size),
        differences,
        bound,
        time.perf_counter() - start,
        attention,
        metrics,
    )


def _read_config(source: Path, meta: dict, path: str | Path | None, trust_imports: bool) -> Config:
    if path:
        return load_config(path)
    if not isinstance(meta.get('cfg'), str):
        raise InputError(f'{source} has no config in it; give the one it was trained with with --config')
    try:
        config = parse_config(meta['cfg'])
        if not isinstance(config.get('model'), dict):
            raise InputError(f'the embedded config has no model; {WAYS_ON}')
        config['model'] = without_downloads(config['model'])
        import_modules(config, trust_imports)
        check_config(config)
        return Config(config)
    except InputError as error:
        raise InputError(f'{source}: {error}') from None
    except Exception as error:  # a stranger's values can be of any type
        raise InputError(one_line(f"{source}: the embedded config can't be used; {WAYS_ON}", error)) from None


def _outputs(model: nn.Module) -> dict[str, torch.Tensor]:
    try:
        return network_outputs(model)
    except Exception as error:  # as can a model
        raise InputError(one_line('the network does not run on noise images', error)) from None


def _run_trained(model: nn.Module, source: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Run the trained network; return its outputs, and what carries an ASR with what that is."""
    hosted = {id(module.asr): name for name, module in model.named_modules() if isinstance(module, Host)}
    asrs = {hosted.get(id(module), name): module for name, module in model.named_modules() if isinstance(module, ASR)}
    unused = set(asrs)
    for name in asrs:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: unused.discard(name))
    outputs = _outputs(model)
    if unused:
        raise InputError(f'{source}: no layer uses the ASR of {some(sorted(unused))}, so it was not trained')
    return outputs, {name: ' x '.join(type(kappa).__name__ for kappa in asr.attention) for name, asr in asrs.items()}
