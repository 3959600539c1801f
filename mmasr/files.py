"""Crash-safe output: a set of files is written completely or not at all.

A write goes through these names next to the first path, here ``a.pth``:

- ``.a.pth.lock``: the lock that admits one process at a time.
- ``.a.pth.writing``: the folder with the new files.
- ``.a.pth.replacing``: the same folder, renamed while the new files replace the old ones. It also contains
  links to the old files.

If a process is killed, the next one for the same paths restores the old files or removes the leftovers.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError


def output_files(
    inputs: Sequence[str | Path], out: str | Path, force: bool, suffixes: Sequence[str] = ('.pth', '.py')
) -> tuple[Path, ...]:
    """Return the paths of the output files, such as a checkpoint and its config, after checking them.

    Args:
        inputs (Sequence[str | Path]): The files that are read, such as a checkpoint. They are never replaced.
        out (str | Path): The first file to write.
        force (bool): Whether existing files may be replaced.
        suffixes (Sequence[str]): What follows the stem of the first file, and of the others next to it.
            Default: ``'.pth'`` and ``'.py'``.

    Returns:
        tuple[Path, ...]: One path for each suffix.

    Raises:
        InputError: If ``out`` has another suffix, a file already exists, or another process is writing the
            files.
    """
    target = Path(out)
    if target.suffix != suffixes[0]:
        raise InputError(f'{target}: the output file must be named *{suffixes[0]}')
    targets = tuple(target.with_name(target.stem + suffix) for suffix in suffixes)
    with _exclusive(targets):  # this first cleans up after a killed process
        for path in targets:
            # Unlike `exists`, `lexists` is also true for a broken symbolic link.
            if not os.path.lexists(path):
                continue
            is_input = path.exists() and any(os.path.exists(file) and path.samefile(file) for file in inputs)
            if not force or path.is_dir() or is_input:
                raise _already_exists(path)
    return targets


def _already_exists(path: Path) -> InputError:
    return InputError(f'{path} already exists; pass `force` to replace it, or `out` to write elsewhere')


@contextlib.contextmanager
def temporary_files(*paths: Path, force: bool = True) -> Iterator[list[Path]]:
    """Yield a temporary file for each path; at the end move all of them to the paths, or none on an error.

    The temporary files are in a new folder next to the first path, which only this user can access. Only one
    process at a time writes the same first path. Each path is replaced atomically, the first one last.
    Interrupts and SIGTERM clean up; if they arrive during the replacement, they wait for its end. A process
    that is killed during the replacement leaves ``.<first name>.replacing``; at any other time it leaves
    ``.<first name>.writing``. The next process for the same paths undoes a partial replacement and removes
    the folder.

    Args:
        *paths (Path): The paths to write, in one folder.
        force (bool): Whether files that exist at the end may be replaced. Default: True.

    Yields:
        list[Path]: The temporary files, in the order of the paths.

    Raises:
        InputError: If another process is writing the first path, a file exists that must not be replaced, a
            file can't be written or moved, or the disk is full. The old files are then unchanged.
    """
    with (
        _exclusive(paths) as folder,
        _signal_handler(lambda number, _: sys.exit(128 + number), signal.SIGTERM),
    ):
        folder.mkdir(mode=0o700)
        try:
            temporary = [folder / path.name for path in paths]
            yield temporary
            for file, path in zip(temporary, paths, strict=True):
                if not force and os.path.lexists(path):
                    raise _already_exists(path)
                with file.open('r+b') as written:
                    os.fsync(written)
            received = []
            with _signal_handler(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM):
                _replace(folder, paths)
            for number in received[:1]:
                signal.raise_signal(number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next process cleans up


@contextlib.contextmanager
def _exclusive(paths: Sequence[Path]) -> Iterator[Path]:
    """Lock the paths, clean up after a killed process, and yield the folder to create and write to."""
    hidden = paths[0].with_name(f'.{paths[0].name}')
    folder, replacing, lock = (
        hidden.with_name(f'{hidden.name}.{name}') for name in ('writing', 'replacing', 'lock')
    )
    try:
        os.stat(paths[0].parent)  # raises if the folder does not exist; FileLock would create it
        if lock.is_symlink():  # locking would truncate the file that it points to
            raise InputError(f'{lock} is a symbolic link; remove it')
        with FileLock(lock, blocking=False):
            try:
                if replacing.exists():
                    _undo(replacing, paths)
                    replacing.rename(folder)
                if folder.exists():
                    shutil.rmtree(folder)
                yield folder
            finally:
                with contextlib.suppress(OSError):  # Windows cannot delete a file that is open
                    lock.unlink()
    except Timeout as error:
        raise InputError(
            f'{paths[0]}: another process is writing it; wait for it, or choose another path'
        ) from error
    except OSError as error:
        raise InputError(
            f"{paths[0].parent}: can't write here: {error.strerror or error}; nothing was changed"
        ) from error


@contextlib.contextmanager
def _signal_handler(handler: Callable, *signals: int) -> Iterator[None]:
    """Replace signal handlers; do nothing outside the main thread, since only that one receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def _replace(folder: Path, paths: Sequence[Path]) -> None:
    """Move the files of a folder to their paths, or none on an error; renaming the folder marks the start."""
    for path in paths:
        if os.path.lexists(path):
            _link(path, folder / f'{path.name}.before')
            if path.is_file():
                shutil.copymode(path, folder / path.name)
    replacing = folder.rename(folder.with_suffix('.replacing'))
    try:
        for path in reversed(paths):
            os.replace(replacing / path.name, path)
    except OSError:
        _undo(replacing, paths)
        replacing.rename(folder)
        raise
    with contextlib.suppress(OSError):  # the next process sees that all files were moved
        replacing.rename(folder)


def _undo(folder: Path, paths: Sequence[Path]) -> None:
    """Undo :func:`_replace` unless it was complete. If this is killed as well, it can be called again."""
    if not any((folder / path.name).exists() for path in paths):
        return
    for path in paths:
        before = folder / f'{path.name}.before'
        if os.path.lexists(before):
            _link(before, folder / 'again')
            os.replace(folder / 'again', path)
        elif not (folder / path.name).exists():
            path.unlink(missing_ok=True)


def _link(path: Path, to: Path) -> None:
    """Create a hard link to a file, or a copy where the file system has no hard links."""
    to.unlink(missing_ok=True)
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, to, follow_symlinks=False)
