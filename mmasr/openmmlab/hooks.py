"""Hooks and optimizer wrappers for mmengine's runner."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn

from ..errors import InputError


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
        loss = float((outputs or {}).get('loss', 0))
        if not math.isfinite(loss):
            good = self.last_good(runner.work_dir)
            raise InputError(
                f'the loss is {loss} in iteration {runner.iter + 1} (epoch {runner.epoch + 1}); '
                + (f'the last good checkpoint is {good}' if good else 'there is no good checkpoint yet')
                + '; a smaller learning rate, or optim_wrapper.clip_grad, often helps'
            )


class ChannelsLastHook(Hook):
    """Hook that trains and validates in torch's memory format ``channels_last``.

    Convolutions are faster in it, on CPUs, and on GPUs with AMP:
    ``custom_hooks=[dict(type='mmasr.ChannelsLastHook')]``. The results are the same, apart from the order of
    summation.

    It is for classifiers only. mmcv's operators, such as RoIAlign, treat every tensor as contiguous.
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
