"""Files that are written as a whole or not at all."""

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


def output_files(source: Path, out: str | Path, force: bool, suffixes: Sequence[str] = ('.pth', '.py')) -> tuple[Path, ...]:
    """The file to write and those beside it: a checkpoint and its config.

    Args:
        source (Path): The checkpoint that is read.
        out (str | Path): The file to write.
        force (bool): Whether what is there may be replaced.
        suffixes (Sequence[str]): Of the file, and of those beside it. Default: ``'.pth'`` and ``'.py'``.

    Returns:
        tuple[Path, ...]: One for each suffix.

    Raises:
        InputError: If the file is named otherwise, one of them is there, or another process writes them.
    """
    target = Path(out)
    if target.suffix != suffixes[0]:
        raise InputError(f'{target}: what is written there must be named *{suffixes[0]}')
    targets = tuple(target.with_suffix(suffix) for suffix in suffixes)
    with _alone(targets):  # what a death left is put in order first
        for path in targets:
            # A link that leads nowhere is there, too.
            if os.path.lexists(path) and (not force or path.is_dir() or (path.exists() and path.samefile(source))):
                raise _taken(path)
    return targets


def _taken(path: Path) -> InputError:
    return InputError(f'{path} is there already; pass `force` to replace it, or `out` for another place')


@contextlib.contextmanager
def temporary_files(*paths: Path, force: bool = True) -> Iterator[list[Path]]:
    """Give a temporary file for each path; at the end they take these paths, all of them, and on any error none.

    They are in a folder of their own beside the first path, which nobody else can write to. One process at a time writes the
    same first path. Interrupts and SIGTERM clean up, and wait while the paths are replaced: each at once, the first one last. A
    process that is killed just then leaves ``.<first name>.replacing``, and everywhere else ``.<first name>.writing``; the next
    one for the same paths takes back what is replaced in part, and removes the folder.

    Args:
        *paths (Path): In one folder.
        force (bool): Whether what is there by the end may be replaced.

    Raises:
        InputError: If another process is writing the first path, something is there that must not be replaced, a file can't be
            written or moved, or the disk is full. What was there is then as it was.
    """
    with _alone(paths) as folder, _handling(lambda number, _: sys.exit(128 + number), signal.SIGTERM):
        folder.mkdir(mode=0o700)
        try:
            temporary = [folder / path.name for path in paths]
            yield temporary
            for file, path in zip(temporary, paths, strict=True):
                if not force and os.path.lexists(path):
                    raise _taken(path)
                with file.open('r+b') as written:
                    os.fsync(written)
            received = []
            with _handling(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM):
                _replace(folder, paths)
            for number in received[:1]:
                signal.raise_signal(number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next one does


@contextlib.contextmanager
def _alone(paths: Sequence[Path]) -> Iterator[Path]:
    """Let no other process write these paths meanwhile, put in order what a dead one left, and give the folder to write in."""
    hidden = paths[0].with_name(f'.{paths[0].name}')
    folder, replacing, lock = (hidden.with_name(f'{hidden.name}.{name}') for name in ('writing', 'replacing', 'lock'))
    try:
        os.stat(paths[0].parent)  # FileLock would make it
        with FileLock(lock, blocking=False):
            try:
                if replacing.exists():
                    _undo(replacing, paths)
                    replacing.rename(folder)
                if folder.exists():
                    shutil.rmtree(folder)
                yield folder
            finally:
                with contextlib.suppress(OSError):  # on Windows nobody can while it is held
                    lock.unlink()
    except Timeout:
        raise InputError(f'{paths[0]}: another process is writing it; wait for it, or name another place') from None
    except OSError as error:
        raise InputError(f"{paths[0].parent}: can't write here: {error.strerror or error}; nothing was changed") from None


@contextlib.contextmanager
def _handling(handler: Callable, *signals: int) -> Iterator[None]:
    """Handle signals otherwise; not in another thread than the main one, which they do not interrupt."""
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
    """Move the files of a folder to their paths; on an error none. Its name says that it has begun."""
    for path in paths:
        if os.path.lexists(path):
            _link(path, folder / f'{path.name}.before')
    replacing = folder.rename(folder.with_suffix('.replacing'))
    try:
        for path in reversed(paths):
            os.replace(replacing / path.name, path)
    except OSError:
        _undo(replacing, paths)
        replacing.rename(folder)
        raise
    with contextlib.suppress(OSError):  # the next one sees that all are in place
        replacing.rename(folder)


def _undo(folder: Path, paths: Sequence[Path]) -> None:
    """Take back what :func:`_replace` has done, unless it had come to its end. It can be done again after a death."""
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
    """Give a file a second name, or where the file system has no such thing a copy."""
    to.unlink(missing_ok=True)
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, to, follow_symlinks=False)
