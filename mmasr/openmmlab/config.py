"""Loading configs, and looking through them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import InputError, one_line


def load_config(path: str | Path) -> Config:
    """Load a config file of the user's own, which is executed.

    Raises:
        InputError: If it is missing or broken.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such config')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program and can fail in any way
        raise InputError(one_line(str(path), error)) from error


def walk(config: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of everything in nested dicts and sequences; an item has the key of its sequence."""
    yield key, config
    if isinstance(config, dict):
        for name, value in config.items():
            yield from walk(value, name)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from walk(value, key)


def without_downloads(config: Any) -> Any:
    """A copy of a config without ``pretrained`` and ``init_cfg`` of type Pretrained: the weights come from a checkpoint."""
    if isinstance(config, list | tuple):
        return type(config)(without_downloads(value) for value in config)
    if not isinstance(config, dict):
        return config
    return {
        key: without_downloads(value)
        for key, value in config.items()
        if key != 'pretrained' and not (key == 'init_cfg' and ('type', 'Pretrained') in walk(value))
    }
