"""Functions that load configs and search them."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv.ops
import mmengine.registry.root
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

from ..errors import InputError, as_input_error

#: Keys whose values are classes or functions.
_KEYS = ('type', 'constructor')


def load_config(path: str | Path) -> Config:
    """Load a config file. This executes it, so the file must be trusted.

    Raises:
        InputError: If the file does not exist or fails.
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: no such config')
    with as_input_error(str(path)):
        return with_type_names(Config.fromfile(path))


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


def default_scope(config: Mapping) -> str:
    """Return the default scope of a config.

    New-style configs may have none, since their classes are found without it. But these classes build their
    defaults by name, such as an assigner its ``BboxOverlaps2D``, so the scope is the package of the model.
    """
    model = config.get('model')
    kind = model.get('type') if isinstance(model, dict) else None
    path = kind.__module__ if isinstance(kind, type) else str(kind)
    return config.get('default_scope') or (path.partition('.')[0] if '.' in path else 'mmengine')


def with_type_names(config: Config) -> Config:
    """Return a config with the registered names of its classes and functions.

    New-style configs of mmengine (``with read_base(): ...``) contain classes where others have names. Both
    build the same. With names, a config can also be searched, changed and written. A class that is not
    registered is named by its full path, which mmengine imports.

    Args:
        config (Config): Config that the user vouches for, since modules that it names are imported.

    Returns:
        Config: The same object if all types are names already, as in old-style configs.
    """
    if not any(key in _KEYS and callable(value) for key, value in walk(config._cfg_dict)):
        return config
    # Names that were imported only for the config are not part of it. mmengine's `dump` omits them, too.
    imported = getattr(config, '_imported_names', ())
    content = {key: value for key, value in config.to_dict().items() if key not in imported}
    return Config(_named(content, _names()), filename=config.filename)


def _named(value: Any, names: dict[int, str], key: str = '') -> Any:
    if isinstance(value, dict):
        return {name: _named(item, names, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_named(item, names, key) for item in value)
    if key not in _KEYS:
        return value
    found = get_object_from_string(value) if isinstance(value, str) and '.' in value else value
    if not callable(found):  # a registered name, such as mmdet.ResNet
        return value
    return names.get(id(found)) or f'{found.__module__}.{found.__qualname__}'


def _names() -> dict[int, str]:
    """Return the names of everything that is registered: id -> name."""
    names: dict[int, str] = {}
    roots = [value for value in vars(mmengine.registry.root).values() if isinstance(value, Registry)]
    for registry in itertools.chain.from_iterable(map(registries_below, roots)):
        for key, found in registry.module_dict.items():
            names.setdefault(id(found), scoped_name(registry, key))
    # mmcv's operators have no scope: MMDetection looks up their names in mmcv.ops.
    names.update({id(getattr(mmcv.ops, name)): name for name in mmcv.ops.__all__})
    return names


def scoped_name(registry: Registry, key: str) -> str:
    """Return the name by which all registries of a kind find what one of them has under a key.

    Args:
        registry (Registry): The registry that has it.
        key (str): Its key there.
    """
    return key if registry.scope == 'mmengine' else f'{registry.scope}.{key}'


def registries_below(registry: Registry) -> Iterator[Registry]:
    """Yield a registry and all its descendants."""
    yield registry
    for child in registry.children.values():
        yield from registries_below(child)
