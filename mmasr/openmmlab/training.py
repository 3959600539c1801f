"""What tools/train.py adds to mmengine's runner: it resumes with what is there, and says in a line why it can't go on."""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn

from ..errors import InputError, one_line, printable
from .checkpoint import read_checkpoint
from .config import walk
from .data_sources import EMPTY, name_images

_MOST = 100_000  # entries of a piece of information; lists that share lists have no end


class ResumeHook(Hook):
    """Takes out of a checkpoint that is resumed what it would do beside training.

    mmengine prints what its message hub holds, writes the text of a config in it into the checkpoints of this training, from
    which it is executed one day, and deletes the files or folders that were the best checkpoints, and those whose numbers are
    to be kept no longer. So of the hub's information numbers are kept, and names of checkpoints only of this training.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change the checkpoint in place; arguments as of mmengine's Hook."""
        folder = Path(runner.work_dir).resolve()
        own = Path(runner._load_from or '').resolve().parent == folder

        def is_kept(name: object, value: object) -> bool:
            if not str(name).isprintable() or (name == 'keep_ckpt_ids' and not own):
                return False
            if str(name).startswith('best_ckpt'):
                return own and Path(str(value)).resolve().parent == folder and Path(str(value)).name.startswith('best_')
            values = [item for _, item in itertools.islice(walk(value), _MOST)]
            return len(values) < _MOST and not any(isinstance(item, str) for item in values)

        hub = checkpoint.get('message_hub')
        hub = hub if isinstance(hub, dict) else {}
        checkpoint['message_hub'] = {
            part: {name: value for name, value in _items(hub.get(part)) if is_kept(name, value)}
            for part in ('log_scalars', 'runtime_info', 'resumed_keys')
        }


def _items(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, dict) else ()


class FiniteLossHook(Hook):
    """Stops a training whose loss is no number, before a checkpoint is saved of it.

    It looks at every iteration: mmengine's RuntimeInfoHook waits for the loss then anyway, to log it.

    Raises:
        InputError: Where the loss is NaN or infinite; it names the iteration and the last good checkpoint.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Look at the loss; arguments as of mmengine's Hook."""
        loss = float((outputs or {}).get('loss', 0))
        if not math.isfinite(loss):
            good = next((path for path, found in _checkpoints(Path(runner.work_dir)) if _is_finite(found)), None)
            raise InputError(
                f'the loss is {loss} in iteration {runner.iter + 1} (epoch {runner.epoch + 1}); '
                + (f'the last good checkpoint is {good}' if good else 'there is no good checkpoint yet')
                + '; a smaller learning rate, or optim_wrapper.clip_grad, often helps'
            )


class ChannelsLastHook(Hook):
    """Training and validation in torch's memory format ``channels_last``, which convolutions are faster in, on processors and
    with AMP on GPUs: ``custom_hooks=[dict(type='mmasr.ChannelsLastHook')]``. The sums are the same, added in another order.

    It is for classifiers: mmcv's operators take every tensor for a contiguous one, RoIAlign among them.
    """

    def before_train(self, runner: Runner) -> None:
        """Lay out the weights, which have been drawn or loaded by now, and what the data preprocessor gives; arguments as of
        mmengine's Hook.

        Raises:
            InputError: If the network has an operator of mmcv.
        """
        for name, module in runner.model.named_modules():
            if type(module).__module__.startswith('mmcv.ops.'):
                raise InputError(
                    f'ChannelsLastHook: {name} ({type(module).__name__}) would read such tensors wrongly; leave it out'
                )
        model = runner.model.to(memory_format=torch.channels_last)
        preprocessor = getattr(model, 'module', model).data_preprocessor
        preprocessor.register_forward_hook(
            lambda _, __, data: {**data, 'inputs': data['inputs'].contiguous(memory_format=torch.channels_last)}
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Lay out the weights as without this hook; arguments as of mmengine's Hook."""
        weights = checkpoint['state_dict']
        weights.update({name: weight.contiguous() for name, weight in weights.items()})  # in place: it has torch's _metadata


class BFloat16OptimWrapper(OptimWrapper):
    """bfloat16 mixed precision on any device, processors among them, where mmengine's AmpOptimWrapper wants a GPU:
    ``optim_wrapper=dict(type='mmasr.BFloat16OptimWrapper')``. bfloat16 has the range of float32, so no loss is scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Where the forward pass belongs; arguments as of mmengine's OptimWrapper."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def prepare(runner: Runner, *loops: str) -> None:
    """Build the data of a runner's loops and have a file that can't be read named.

    Args:
        runner (Runner): Built, and not yet run.
        *loops (str): ``train``, ``val`` or ``test``.

    Raises:
        InputError: If the data don't load, or there are none.
    """
    for loop in loops:
        config = getattr(runner, f'_{loop}_loop')
        if config is None:
            continue
        try:
            built = getattr(runner, f'build_{loop}_loop')(config)
        except Exception as error:  # of whatever the config asks for
            if 'need at least one array to concatenate' in str(error):  # how mmengine's datasets say it
                raise InputError(f'{loop}_dataloader: {EMPTY}') from None
            raise InputError(one_line(f'the data of {loop}_dataloader do not load', error)) from error
        if not len(built.dataloader.dataset):
            raise InputError(f'{loop}_dataloader: {EMPTY}')
        name_images(built.dataloader.dataset)
        setattr(runner, f'_{loop}_loop', built)


def checkpoint_to_resume(given: str, work_dir: str) -> str | None:
    """The checkpoint to go on from.

    Args:
        given (str): A checkpoint, or ``auto`` for the newest that reads well in the folder of the training. One that a death
            cut short is passed over.
        work_dir (str): That folder.

    Returns:
        str | None: Its path; None if there is none yet.

    Raises:
        InputError: If the one that is given can't be read, or holds weights only.
    """
    if given == 'auto':
        return next((str(path) for path, found in _checkpoints(Path(work_dir)) if _has_state(found)), None)
    if '://' not in given and not _has_state(read_checkpoint(given, mmap=True)):
        raise InputError(
            f'{given} has no state of a training in it, only weights; to start from them: `cfg_options` load_from={given}'
        )
    return given


def _checkpoints(folder: Path) -> Iterator[tuple[Path, dict]]:
    """The checkpoints of a training that can be read, the newest first; the best ones, which may be old, left out."""
    paths = {path for path in folder.glob('*.pth') if not path.name.startswith('best_')}
    last = folder / 'last_checkpoint'  # names one that may be in another folder
    if last.is_file() and (named := last.read_text().strip()) and Path(named).is_file():
        paths = {path for path in paths if not path.samefile(named)} | {Path(named)}
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            yield path, read_checkpoint(path, mmap=True)
        except InputError as error:
            print(printable(f'passed over: {error}'))


def _has_state(checkpoint: dict) -> bool:
    return 'message_hub' in checkpoint and {'epoch', 'iter'} <= set(checkpoint['meta'])


def _is_finite(checkpoint: dict) -> bool:
    return all(tensor.isfinite().all() for tensor in checkpoint['state_dict'].values() if tensor.is_floating_point())
