"""The text of a config: written from plain data, and read as plain data, without executing it."""

import ast
import keyword
import math
import warnings
from typing import Any

from ..errors import InputError

WIDTH = 120
#: Characters of a config; that of LVIS with the names of all its classes has 100 000.
LONGEST = 2_000_000
_LARGEST = 2**53  # number that is a key


def write_config(config: dict) -> str:
    """Write a config of plain data as Python that mmengine loads.

    Args:
        config (dict): Name -> numbers, booleans, None, strings, and lists, tuples and dicts of them.

    Returns:
        str: What :func:`parse_config` and mmengine read back as the same.

    Raises:
        InputError: If the config holds anything else.
    """
    for name in config:
        if not _is_word(name):
            raise InputError(f'the config has the name {name!r}, which is none in Python')
    return ''.join(f'{name} = {_text(value, len(name) + 3)}\n' for name, value in config.items())


def _text(value: Any, before: int, indent: str = '    ') -> str:
    """The text of a value, on one line if it fits after so many characters."""
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
    return f'{brackets[0]}\n' + ''.join(f'{indent}{text},\n' for text in texts) + f'{indent[4:]}{brackets[1][-1]}'


def _flat(value: Any) -> str:
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, str):
        return repr(value).replace('{{', '{\\x7b')  # mmengine substitutes {{ }} in the text before it reads it
    raise InputError(f'the config has {value!r} in it ({type(value).__name__}), which is no plain data')


def _is_word(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


def parse_config(text: str) -> dict:
    """Read the text of a config, as :func:`write_config` and mmengine write it, without executing it.

    Args:
        text (str): Assignments of literals and ``dict(...)``.

    Returns:
        dict: Name -> value.

    Raises:
        InputError: If the text holds anything else.
    """
    if len(text) > LONGEST:
        raise InputError(f'it has {len(text):,} characters, more than {LONGEST:,}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # they would show the text as it is
            return dict(_assignment(statement) for statement in ast.parse(text).body)
    except SyntaxError as error:
        raise InputError(f'it is no Python (line {error.lineno})') from None
    except (RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"it can't be read ({error})") from None


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
            return {_key(item) for item in items}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if all(item.arg for item in items):
            return {item.arg: _value(item.value) for item in items}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as items], keywords=[]):
            return _value(items)
        case ast.Name(id='inf' | 'nan' as name):  # as mmengine writes them
            return float(name)
        case ast.Call(func=ast.Name(id='float'), args=[ast.Constant(value='inf' | '-inf' | 'nan' as name)], keywords=[]):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _value(operand), int | float | complex):
            return -number
    raise _not_data(node)


def _key(node: ast.expr) -> Any:
    value = _value(node)
    if isinstance(value, int | float | complex) and not abs(value) < _LARGEST:  # they can be made to collide
        raise _not_data(node)
    return value


def _not_data(node: ast.AST) -> InputError:
    code = ast.unparse(node).splitlines()[0][:60]
    return InputError(f'it is not plain data (line {node.lineno}: {code}) and is not executed')
