"""Files that are written as a whole or not at all."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


def output_files(source: Path, out: str | Path, force: bool) -> tuple[Path, Path]:
    """The checkpoint to write and the config beside it.

    Args:
        source (Path): The checkpoint that is read.
        out (str | Path): The one to write.
        force (bool): Whether what is there may be replaced.

    Returns:
        tuple[Path, Path]: ``*.pth`` and ``*.py``.

    Raises:
        InputError: If the checkpoint is not named ``*.pth``, or one of them is there.
    """
    target = Path(out)
    if target.suffix != '.pth':
        raise InputError(f'{target}: the checkpoint to write must be named *.pth')
    targets = target, target.with_suffix('.py')
    for path in targets:
        if path.exists() and (not force or path.is_dir() or path.samefile(source)):
            raise InputError(f'{path} is there already; pass `force` to replace it, or `out` for another place')
    return targets


@contextlib.contextmanager
def temporary_files(*paths: Path) -> Iterator[list[Path]]:
    """Give a temporary file for each path; at the end move them all into place, and on any error none.

    They are in a folder of their own beside the first path, which nobody else can write to.

    Raises:
        InputError: If a file can't be written, moved, or the disk is full. What was there is then as it was.
    """
    try:
        with tempfile.TemporaryDirectory(dir=paths[0].parent, prefix='.mmasr-') as folder:
            temporary = [Path(folder, path.name) for path in paths]
            yield temporary
            replaced = {}
            try:
                for source, target in zip(temporary, paths, strict=True):
                    replaced[target] = target.exists() and target.rename(Path(folder, f'{target.name}.before'))
                    source.replace(target)
            except OSError:
                for target, before in replaced.items():
                    if before:
                        before.replace(target)
                    else:
                        target.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(f"{paths[0].parent}: can't write here: {error.strerror or error}; nothing was changed") from None
