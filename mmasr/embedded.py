"""The config inside a checkpoint: text from a stranger, read as data and checked before anything is built from it."""

import ast
import contextlib
import importlib
import math
from collections.abc import Iterator
from typing import Any

import mmcv.ops
import mmengine.registry.root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string, import_modules_from_strings

from .errors import InputError

#: Packages that an embedded config may import: mmasr and OpenMMLab's.
TRUSTED_PACKAGES = {'mmasr', 'mmengine', 'mmcv', *MODULE2PACKAGE}
WAYS_ON = 'give the config as a file of your own with --config'


def parse_config(text: str) -> dict:
    """Read the text of a config, as mmengine writes it, without executing it.

    Args:
        text (str): Assignments of literals and ``dict(...)``.

    Returns:
        dict: Name -> value.

    Raises:
        InputError: If the text holds anything else.
    """
    try:
        statements = ast.parse(text).body
        return dict(_assignment(statement) for statement in statements)
    except SyntaxError as error:
        raise InputError(f'the embedded config is no Python (line {error.lineno}); {WAYS_ON}') from None
    except (RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the embedded config can't be read ({error}); {WAYS_ON}") from None


def _assignment(node: ast.stmt) -> tuple[str, Any]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, _value(value)
    raise _not_data(node)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if all(item.arg for item in items):
            return {item.arg: _value(item.value) for item in items}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as items], keywords=[]):
            return _value(items)
        case ast.Name(id='inf' | 'nan' as name):
            return getattr(math, name)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _value(operand), int | float | complex):
            return -number
    raise _not_data(node)


def _not_data(node: ast.AST) -> InputError:
    code = ast.unparse(node).splitlines()[0][:60]
    return InputError(f'the embedded config is not plain data (line {node.lineno}: {code}) and is not executed; {WAYS_ON}')


def import_modules(config: dict, trust: bool) -> None:
    """Import what an embedded config's ``custom_imports`` name.

    Args:
        config (dict): The parsed config.
        trust (bool): Import any module; otherwise only those of :data:`TRUSTED_PACKAGES`.

    Raises:
        InputError: If a module is not trusted, or can't be imported.
    """
    imports = (config.get('custom_imports') or {}).get('imports') or []
    for name in [imports] if isinstance(imports, str) else imports:
        if not trust and str(name).split('.')[0] not in TRUSTED_PACKAGES:
            raise InputError(f'the embedded config imports {name}, which was not run; {WAYS_ON}, or pass --trust-imports')
        try:
            import_modules_from_strings(name)
        except ImportError as error:
            raise InputError(f"the embedded config imports {name}, which can't be imported: {error}") from None


def check_model(config: dict) -> None:
    """Refuse a model config that would run or load more than registered classes.

    mmengine takes a ``type`` it does not know for a path to any callable (``os.system``), mmcv and mmdet evaluate a few
    strings as Python (the ``type`` of an NMS, a tracker's ``warp_mode``), and some classes load a file that is named.

    Args:
        config (dict): The parsed config, its modules imported.

    Raises:
        InputError: If a type is not registered, a scope not OpenMMLab's, or a string names a file of weights or code.
    """
    scopes = [config.get('default_scope')]
    types = []
    for key, value in walk(config.get('model')):
        if key == '_scope_':
            scopes.append(value)
        elif key == 'type':
            types.append(value)
        elif isinstance(value, str) and ('://' in value or value.endswith(('.pth', '.pt', '.pkl', '.ckpt', '.bin', '.py'))):
            raise InputError(f'the embedded config has the model load {value!r} ({key}), which was not done; {WAYS_ON}')
        elif isinstance(value, str) and '(' in value and key != 'sites':  # which is a regular expression
            raise InputError(f'the embedded config has code in it ({key}: {value[:60]!r}), which was not run; {WAYS_ON}')
    for scope in scopes:
        if scope is not None and scope not in TRUSTED_PACKAGES:
            raise InputError(f'the embedded config has the scope {scope!r}, which is none of OpenMMLab; {WAYS_ON}')
    for scope in TRUSTED_PACKAGES.intersection([*scopes, *(str(name).split('.')[0] for name in types)]):
        with contextlib.suppress(ImportError):
            importlib.import_module(f'{scope}.registry')
    for name in types:
        if not _is_registered(name):
            raise InputError(f'the embedded config builds {name!r}, which no registry knows, and was not run; {WAYS_ON}')


def walk(config: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of everything in nested dicts and sequences; an item has the key of its sequence."""
    yield key, config
    if isinstance(config, dict):
        for name, value in config.items():
            yield from walk(value, name)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from walk(value, key)


def _registries(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _registries(child)


def _is_registered(name: Any) -> bool:
    if name in mmcv.ops.__all__:  # RoIAlign and nms, say, are looked up there
        return True
    roots = [registry for registry in vars(mmengine.registry.root).values() if isinstance(registry, Registry)]
    registries = [registry for root in roots for registry in _registries(root)]
    for registry in registries:
        registry.import_from_location()
    scope, _, key = str(name).rpartition('.')
    if '.' not in scope and any(key in r.module_dict for r in registries if not scope or r.scope == scope):
        return True
    # Configs of the newer style name a class by its full path.
    if scope.split('.')[0] not in TRUSTED_PACKAGES:
        return False
    try:
        found = get_object_from_string(name)
    except Exception:
        return False
    return any(found is known for registry in registries for known in registry.module_dict.values())
