"""Save checkpoints."""

from pathlib import Path

import torch


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Save a checkpoint.

    Args:
        checkpoint (dict): Its content.
        path (Path): The file.

    Raises:
        OSError: If it cannot be written. For a full disk, torch itself reports only an unexpected file
            position.
    """
    with path.open('wb') as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
