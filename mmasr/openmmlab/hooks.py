"""Hooks and optimizer wrappers for mmengine's runner."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn

from ..core.merge import can_merge, has_branches
from ..core.reparameterization import REPARAMETERIZATIONS, Reparameterization
from ..errors import InputError, shortened


class FiniteLossHook(Hook):
    """Hook that stops a training with a NaN or infinite loss, before a checkpoint of it is saved.

    It checks every iteration. mmengine's RuntimeInfoHook waits for the loss anyway, to log it.

    Args:
        last_good (callable): ``work_dir -> Path | None``: the newest checkpoint with finite weights, for the
            message.
    """

    def __init__(self, last_good: Callable[[str], Path | None]) -> None:
        self.last_good = last_good

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Check the loss.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Number of the batch.
            data_batch (Any): The batch.
            outputs (dict[str, Tensor], optional): The losses; ``loss`` is their sum.

        Raises:
            InputError: If the loss is NaN or infinite; it names the iteration and the last good checkpoint.
        """
        loss = torch.as_tensor((outputs or {}).get('loss', 0)).item()
        if not math.isfinite(loss):
            good = self.last_good(runner.work_dir)
            raise InputError(
                f'the loss is {loss} in iteration {runner.iter + 1} (epoch {runner.epoch + 1}); '
                + (f'the last good checkpoint is {good}' if good else 'there is no good checkpoint yet')
                + '; a smaller learning rate, or optim_wrapper.clip_grad, often helps'
            )


class MatchingFormHook(Hook):
    """Hook that refuses a checkpoint whose re-parameterization is not that of the config.

    mmengine only warns in its log, and runs a network that is not the trained one. Weights that both forms
    have, such as those of another head, are left to mmengine.

    Args:
        trains (bool): Whether the checkpoint starts a training, which may add a re-parameterization to plain
            weights. A training that is resumed may not.
    """

    def __init__(self, trains: bool) -> None:
        self.trains = trains

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names of the weights with the network's.

        Args:
            runner (Runner): The runner, with the checkpoint's path.
            checkpoint (dict): The checkpoint.

        Raises:
            InputError: If one of both has a re-parameterization that the other lacks.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        source, config = runner._load_from, runner.cfg.filename or 'the config'
        weights = checkpoint.get('state_dict', checkpoint)
        missing, unexpected = _differing_names(model, {name.removeprefix('module.') for name in weights})
        if unexpected:
            raise InputError(
                f'{source} has weights of a re-parameterization that {config} lacks: '
                f'{shortened(unexpected)}; use the config that it was trained with, or deploy it with '
                'tools/reparam.py first'
            )
        if not missing or (self.trains and not runner._resume):
            return
        problem = f'{source} lacks weights of the re-parameterization in {config}: {shortened(missing)}; '
        if self.trains:
            raise InputError(
                f'{problem}resume with the config that the checkpoint was trained with, or start a training '
                f'from its weights, without `resume`: `cfg_options` load_from={source}'
            )
        raise InputError(
            f'{problem}use the config that belongs to the checkpoint (tools/reparam.py writes it next to a '
            'deployed one), or the checkpoint of the training'
        )


def _differing_names(model: nn.Module, weights: set[str]) -> tuple[list[str], list[str]]:
    """Return the weights of re-parameterization that only the model has, and those that only a file has."""
    own, modules = set(model.state_dict()), dict(model.named_modules())
    sites = tuple(
        f'{name}.'
        for name, module in modules.items()
        if isinstance(module, Reparameterization) or (has_branches(module) and can_merge(module))
    )
    # Branches may take the weight of the convolution that they replace; other names are missing then too.
    missing = sorted(name for name in own - weights if name.startswith(sites))
    markers = {kind.state_dict_marker for kind in REPARAMETERIZATIONS.values()} - {None}
    # Layers without children, whose weights the file lacks: it may have branches in their place.
    layers = {name.rpartition('.')[0] for name in own - weights}
    layers = tuple(f'{name}.' for name in layers if name and not any(modules[name].children()))
    unexpected = sorted(
        name
        for name in weights - own
        if markers & set(name.split('.')[:-1])
        or any(name.startswith(layer) and '.' in name.removeprefix(layer) for layer in layers)
    )
    return missing, unexpected


class ChannelsLastHook(Hook):
    """Hook that trains and validates in torch's memory format ``channels_last``.

    Convolutions are faster in it, on CPUs, and on GPUs with AMP:
    ``custom_hooks=[dict(type='mmasr.ChannelsLastHook')]``. The results are the same, apart from the order of
    summation.

    It is for networks without mmcv's operators, such as RoIAlign, which treat every tensor as contiguous:
    classifiers, segmentors and one-stage detectors.
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the weights, which are loaded by now, and the outputs of the data preprocessor.

        Raises:
            InputError: If the network contains an operator of mmcv.
        """
        for name, module in runner.model.named_modules():
            if type(module).__module__.startswith('mmcv.ops.'):
                raise InputError(
                    f'ChannelsLastHook: {name} ({type(module).__name__}) would misread such tensors; remove '
                    'the hook'
                )
        model = runner.model.to(memory_format=torch.channels_last)
        preprocessor = getattr(model, 'module', model).data_preprocessor
        preprocessor.register_forward_hook(
            lambda _, __, data: {
                **data,
                'inputs': data['inputs'].contiguous(memory_format=torch.channels_last),
            }
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the weights in the same memory format as without this hook.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): The checkpoint, changed in place.
        """
        weights = checkpoint['state_dict']
        weights.update(
            {name: weight.contiguous() for name, weight in weights.items()}
        )  # keeps torch's _metadata


class BFloat16OptimWrapper(OptimWrapper):
    """Optimizer wrapper for bfloat16 mixed precision on any device.

    Use ``optim_wrapper=dict(type='mmasr.BFloat16OptimWrapper')`` on a CPU, which mmengine's AmpOptimWrapper
    does not support. bfloat16 has the range of float32, so the loss is not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """While active, run the forward pass in mixed precision."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
