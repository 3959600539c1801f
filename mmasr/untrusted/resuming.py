"""Resume a training from an untrusted checkpoint."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import InputError, printable
from ..openmmlab.config import walk
from .opening import open_checkpoint

_MAX_ITEMS = 100_000  # in one entry of the message hub
#: The same for the state of an optimizer, and how deep anything may be nested. Lists that contain each other,
#: or the same list many times, are endless or nearly so.
_MAX_STATE, _MAX_DEPTH = 1_000_000, 50


class ResumeHook(Hook):
    """Hook that removes from a resumed checkpoint what would have effects besides training.

    mmengine prints the entries of its message hub. It writes the text of a config in it into the checkpoints
    of this training, from which it is executed later. It deletes the files or folders that were the best
    checkpoints, and those beyond the number to keep. So only numbers are kept from the hub, and names of
    checkpoints of this training.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change the checkpoint in place.

        Args:
            runner (Runner): The runner, with the checkpoint's path.
            checkpoint (dict): The checkpoint.

        Raises:
            InputError: If the state of the optimizer or anything else that is resumed is endless, or a
                scheduler's is empty.
        """
        _check_state(checkpoint, runner._load_from)
        folder = Path(runner.work_dir).resolve()
        own = Path(runner._load_from or '').resolve().parent == folder

        def is_harmless(name: object, value: object) -> bool:
            if not str(name).isprintable() or (name == 'keep_ckpt_ids' and not own):
                return False
            if str(name).startswith('best_ckpt'):
                best = Path(str(value))
                return own and best.resolve().parent == folder and best.name.startswith('best_')
            values = [item for _, item in itertools.islice(walk(value), _MAX_ITEMS)]
            return len(values) < _MAX_ITEMS and not any(isinstance(item, str) for item in values)

        hub = checkpoint.get('message_hub')
        hub = hub if isinstance(hub, dict) else {}
        checkpoint['message_hub'] = {
            part: {name: value for name, value in _items(hub.get(part)) if is_harmless(name, value)}
            for part in ('log_scalars', 'runtime_info', 'resumed_keys')
        }


def _check_state(checkpoint: dict, source: str) -> None:
    for part in ('optimizer', 'param_schedulers', 'message_hub'):
        if not _is_finite_tree(checkpoint.get(part)):
            raise InputError(
                f'{source}: {part} contains itself, is nested more than {_MAX_DEPTH} levels deep, or has '
                f'more than {_MAX_STATE} items'
            )
    schedulers = checkpoint.get('param_schedulers', ())
    groups = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    for group in groups:
        if not isinstance(group, list | tuple) or not all(
            isinstance(state, dict) and type(state.get('last_step')) is int for state in group
        ):
            raise InputError(
                f'{source}: the state of a learning rate scheduler in param_schedulers is missing'
            )


def _is_finite_tree(value: object) -> bool:
    remaining = [(value, 0)]
    for _ in range(_MAX_STATE):
        if not remaining:
            return True
        item, depth = remaining.pop()
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
        if children and depth == _MAX_DEPTH:
            return False
        remaining.extend((child, depth + 1) for child in children)
    return not remaining


def _items(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, dict) else ()


def checkpoint_to_resume(given: str, work_dir: str) -> str | None:
    """Return the checkpoint to resume from.

    Args:
        given (str): A checkpoint; or ``auto`` for the latest one in the work dir that is intact and has
            finite weights.
        work_dir (str): Folder of the training.

    Returns:
        str | None: Its path; None if there is none yet.

    Raises:
        InputError: If the given one cannot be read, or contains only weights.
    """
    if given == 'auto':
        found = readable_checkpoints(Path(work_dir))
        usable = (path for path, checkpoint in found if _has_state(checkpoint) and _is_finite(checkpoint))
        return next(map(str, usable), None)
    if '://' not in given and not _has_state(open_checkpoint(given).content):
        raise InputError(
            f'{given} contains only weights, not the state of a training; to start from them: `cfg_options` '
            f'load_from={given}'
        )
    return given


def last_finite_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the latest checkpoint of a training whose weights are finite; None if there is none."""
    found = readable_checkpoints(Path(work_dir))
    return next((path for path, checkpoint in found if _is_finite(checkpoint)), None)


def readable_checkpoints(folder: Path) -> Iterator[tuple[Path, dict]]:
    """Yield the checkpoints of a training that can be read and their content, the latest first.

    The order is that of the epochs or iterations in their names; copying a folder can change the times of the
    files. The best checkpoints, which may be old, are skipped.
    """
    paths = {path for path in folder.glob('*.pth') if not path.name.startswith('best_')}
    last = folder / 'last_checkpoint'  # contains the name of one that may be in another folder
    if last.is_file() and (named := last.read_text(errors='replace').strip()) and Path(named).is_file():
        paths = {path for path in paths if not path.samefile(named)} | {Path(named)}
    for path in sorted(paths, key=_progress, reverse=True):
        try:
            yield path, open_checkpoint(path).content
        except InputError as error:
            print(printable(f'skipped: {error}'))


def _progress(path: Path) -> tuple[int, int]:
    number = re.search(r'(?:epoch|iter)_(\d+)', path.name)
    return int(number[1]) if number else -1, path.stat().st_mtime_ns


def _is_finite(checkpoint: dict) -> bool:
    weights = checkpoint['state_dict'].values()
    return all(tensor.isfinite().all() for tensor in weights if tensor.is_floating_point())


def _has_state(checkpoint: dict) -> bool:
    return 'message_hub' in checkpoint and {'epoch', 'iter'} <= set(checkpoint['meta'])
