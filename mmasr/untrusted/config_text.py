"""Text of a config: written from plain data, and parsed as plain data without executing it."""

import ast
import keyword
import math
import warnings
from typing import Any

from ..errors import InputError

WIDTH = 120
#: Characters of a config. LVIS's, with the names of all its classes, has 100,000.
MAX_LENGTH = 2_000_000
_LARGEST_KEY = 2**53
#: Python refuses to write much larger ones in decimal.
_LARGEST_INTEGER = 2**1024


def write_config(config: dict) -> str:
    """Write a config of plain data as Python that mmengine loads.

    Args:
        config (dict): Name -> numbers, booleans, None, strings, and lists, tuples and dicts of them.

    Returns:
        str: Text that :func:`parse_config` and mmengine read back as the same config.

    Raises:
        InputError: If the config contains anything else.
    """
    for name in config:
        if not _is_word(name):
            raise InputError(f'the config has the name {name!r}, which is not a name in Python')
    return ''.join(f'{name} = {_text(value, len(name) + 3)}\n' for name, value in config.items())


def _text(value: Any, before: int, indent: str = '    ') -> str:
    """Return the text of a value, on one line if it fits after ``before`` characters."""
    if isinstance(value, dict):
        words = all(map(_is_word, value))
        items = [(f'{key}=' if words else f'{_flat(key)}: ', item) for key, item in value.items()]
        brackets = ('dict(', ')') if words else ('{', '}')
    elif isinstance(value, list | tuple):
        items = [('', item) for item in value]
        brackets = ('[', ']') if isinstance(value, list) else ('(', ',)' if len(value) == 1 else ')')
    else:
        return _flat(value)
    texts = [name + _text(item, len(indent) + len(name), f'{indent}    ') for name, item in items]
    line = f'{brackets[0]}{", ".join(texts)}{brackets[1]}'
    if not items or ('\n' not in line and before + len(line) < WIDTH):
        return line
    return (
        f'{brackets[0]}\n'
        + ''.join(f'{indent}{text},\n' for text in texts)
        + f'{indent[4:]}{brackets[1][-1]}'
    )


def _flat(value: Any) -> str:
    if value is None or isinstance(value, bool | int):
        if value is not None and abs(value) > _LARGEST_INTEGER:
            raise InputError('the config contains an integer of more than 1,024 bits')
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, str):
        return repr(value).replace('{{', '{\\x7b')  # mmengine substitutes {{ }} in the text before parsing it
    raise InputError(f'the config contains {value!r} ({type(value).__name__}), which is not plain data')


def _is_word(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


def parse_config(text: str) -> dict:
    """Parse the text of a config, as :func:`write_config` and mmengine write it, without executing it.

    Args:
        text (str): Assignments of literals and ``dict(...)``.

    Returns:
        dict: Name -> value.

    Raises:
        InputError: If the text contains anything else.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f'it has {len(text):,} characters, more than {MAX_LENGTH:,}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # they would show the text unescaped
            return dict(_assignment(statement) for statement in ast.parse(text).body)
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f'it is not valid Python (line {error.lineno})') from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise InputError(f"it can't be parsed ({error})") from error


def _assignment(node: ast.stmt) -> tuple[str, Any]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, _value(value)
    raise _not_data(node)


def _value(node: ast.expr) -> Any:  # noqa: C901, one case for each form
    match node:
        case ast.Constant(value=int(value)) if abs(value) > _LARGEST_INTEGER:
            raise InputError(f'it has an integer of more than 1,024 bits (line {node.lineno})')
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_key(item) for item in items}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if all(item.arg for item in items):
            return {item.arg: _value(item.value) for item in items}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as items], keywords=[]):
            return _value(items)
        case ast.Name(id='inf' | 'nan' as name):  # as mmengine writes them
            return float(name)
        case ast.Call(
            func=ast.Name(id='float'), args=[ast.Constant(value='inf' | '-inf' | 'nan' as name)], keywords=[]
        ):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(
            number := _value(operand), int | float | complex
        ):
            return -number
    raise _not_data(node)


def _key(node: ast.expr) -> Any:
    value = _value(node)
    if isinstance(value, list | dict | set) or (isinstance(value, tuple) and not _is_hashable(value)):
        raise _not_data(node)
    if isinstance(value, int | float | complex) and not abs(value) < _LARGEST_KEY:  # their hashes can collide
        raise _not_data(node)
    return value


def _is_hashable(value: tuple) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _not_data(node: ast.AST) -> InputError:
    code = ast.unparse(node).splitlines()[0][:60]
    return InputError(f'it is not plain data (line {node.lineno}: {code}) and is not executed')
