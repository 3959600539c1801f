"""Functions that load configs and search them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import InputError, as_input_error


def load_config(path: str | Path) -> Config:
    """Load a config file. This executes it, so the file must be trusted.

    Raises:
        InputError: If the file does not exist or fails.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such config')
    with as_input_error(str(path)):
        return Config.fromfile(path)


def walk(config: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield all keys and values in nested dicts and sequences, including the outermost value.

    Args:
        config (Any): A value of a config.
        key (str): Its key. Default: ``''``.

    Yields:
        tuple[str, Any]: Key and value. An item of a sequence has the key of the sequence.
    """
    yield key, config
    if isinstance(config, dict):
        for name, value in config.items():
            yield from walk(value, name)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from walk(value, key)


def without_downloads(config: Any) -> Any:
    """Copy a config without ``pretrained`` and without ``init_cfg`` of type Pretrained.

    It is for networks whose weights come from a checkpoint.
    """
    if isinstance(config, list | tuple):
        return type(config)(without_downloads(value) for value in config)
    if not isinstance(config, dict):
        return config
    return {
        key: without_downloads(value)
        for key, value in config.items()
        if key != 'pretrained' and not (key == 'init_cfg' and ('type', 'Pretrained') in walk(value))
    }
