"""The config inside a checkpoint: text from a stranger, read as data and checked before anything is built from it."""

import ast
import contextlib
import importlib
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import mmcv.ops
import mmengine.registry.root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string, import_modules_from_strings

from ..attention import ATTENTIONS
from ..core.attach import CONVOLUTIONS
from ..errors import InputError
from ..openmmlab.config import walk

#: Packages that an embedded config may import: mmasr and OpenMMLab's.
TRUSTED_PACKAGES = {'mmasr', 'mmengine', 'mmcv', *MODULE2PACKAGE}
WAYS_ON = 'give the config as a file of your own with `config`'


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
            raise InputError(f'the embedded config imports {name}, which was not run; {WAYS_ON}, or pass `trust_imports`')
        try:
            import_modules_from_strings(name)
        except ImportError as error:
            raise InputError(f"the embedded config imports {name}, which can't be imported: {error}") from None


def check_config(config: dict) -> None:
    """Refuse a config that would run or load more than registered classes, here or when the deployed config is used.

    mmengine takes a ``type`` it does not know for a path to any callable (``os.system``) and runs ``_base_`` and ``{{...}}``
    of a file; mmcv and mmdet evaluate a few strings as Python (the ``type`` of an NMS, a tracker's ``warp_mode``); and some
    classes load a file or a repository that is named.

    Args:
        config (dict): The parsed config, its modules imported.

    Raises:
        InputError: If it has any of that.
    """
    for name in ('_base_', '_delete_', '_deprecation_', 'filename', 'text', 'pretty_text', 'env_variables'):
        if name in config:
            raise InputError(f'the embedded config sets {name}, which is not its own to set; {WAYS_ON}')
    values = list(walk(config))
    if any('{{' in text for pair in values for text in pair if isinstance(text, str)):
        raise InputError(f'the embedded config has {{{{ in it, which would be substituted when it is loaded; {WAYS_ON}')
    model = [config.get('model'), config.get('data_preprocessor')]
    for key, value in walk(model):
        if isinstance(value, str):
            _check_string(key, value)
    types = [(key, value) for key, value in values if key in ('type', 'constructor', 'runner_type') and value is not None]
    scopes = {config.get('default_scope'), *(value for key, value in values if key == '_scope_')} - {None}
    if strange := scopes - TRUSTED_PACKAGES:
        raise InputError(f'the embedded config has the scope {strange.pop()!r}, which is none of OpenMMLab; {WAYS_ON}')
    packages = TRUSTED_PACKAGES.intersection([*scopes, *(str(name).split('.')[0] for _, name in types)])
    for scope in packages:
        with contextlib.suppress(ImportError):
            importlib.import_module(f'{scope}.registry')
    in_model = [value for key, value in walk(model) if key == 'type' and value is not None]
    elsewhere = [value for _, value in types if value not in in_model]
    for names, kinds in (
        (in_model, ('model', 'task util', 'weight initializer', 'batch augment')),  # what a model is built with
        (elsewhere, None),
    ):
        known = list(_registries(kinds, packages)) if names else []
        for name in names:
            if not _is_registered(name, known):
                raise InputError(f'the embedded config builds {name!r}, which no registry has for this; {WAYS_ON}')


#: What a data pipeline from a stranger may consist of: it reads images and annotations from local files, and writes none.
_DATA_TYPES = {
    *('CocoDataset', 'ImageNet', 'STL10', 'CustomDataset', 'ConcatDataset'),
    *('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'ResizeEdge', 'CenterCrop', 'Pad', 'PackDetInputs', 'PackInputs'),
    *('CocoMetric', 'Accuracy', 'SingleLabelMetric'),
    *('DefaultSampler', 'pseudo_collate', 'default_collate'),
}
_REFUSED_DATA_KEYS = {'outfile_prefix', 'collect_dir', 'format_only', 'backend_args', 'file_client_args', 'worker_init_fn'}


def check_data_config(*parts: Any) -> None:
    """Refuse datasets, pipelines and evaluators that would do more than read local images and annotations and count.

    Args:
        *parts: Configs, of a config that has passed :func:`check_config`.

    Raises:
        InputError: If one has a type that is not known to be harmless, a file it would write, or an address.
    """
    for key, value in walk(parts):
        if key in ('type', 'collate_fn') and isinstance(value, str) and value.rpartition('.')[2] not in _DATA_TYPES:
            raise InputError(f"the embedded config's data uses {value!r}, which was not run; {WAYS_ON}")
        if key == 'type' and not isinstance(value, str):
            raise InputError(f"the embedded config's data uses {value!r}, which was not run; {WAYS_ON}")
        if (key in _REFUSED_DATA_KEYS and value) or (isinstance(value, str) and ('://' in value or value.endswith('.pkl'))):
            raise InputError(f"the embedded config's data has {key} = {value!r}, which was not used; {WAYS_ON}")


def _check_string(key: str, value: str) -> None:
    """Refuse a string of the model's config that is a file to load, a repository, code, or an endless regular expression."""
    if (
        '://' in value
        or value.endswith(('.pth', '.pt', '.pkl', '.ckpt', '.bin', '.py'))
        or value.startswith(('hf_hub:', 'hf-hub:', 'local-dir:'))
        or key in ('name_or_path', 'pretrained_model_name_or_path')
    ):
        raise InputError(f'the embedded config has the model load {value!r} ({key}), which was not done; {WAYS_ON}')
    if key == 'sites':
        if re.search(r'\)[*+?{]', value) or len(re.findall(r'[*+?{]', value)) > 8:
            raise InputError(f'the embedded config has an expression that may never end ({key}: {value[:60]!r}); {WAYS_ON}')
    elif set(value) & set('([{') or key == 'warp_mode':
        raise InputError(f'the embedded config has code in it ({key}: {value[:60]!r}), which was not run; {WAYS_ON}')


def _registries(names: tuple[str, ...] | None, packages: set[str]) -> Iterator[Registry]:
    """The registries of mmengine and some other packages, of these names or of any, each with its modules imported."""

    def below(registry: Registry) -> Iterator[Registry]:
        if registry.scope in {'mmengine', *packages}:  # another package may lack what it needs, and none of it is needed here
            yield registry
        for child in registry.children.values():
            yield from below(child)

    # Most have their root in mmengine; a few, such as mmpretrain's BATCH_AUGMENTS, are a package's own.
    modules = [mmengine.registry.root, *(sys.modules.get(f'{package}.registry') for package in sorted(packages))]
    for value in [value for module in modules if module for value in vars(module).values()]:
        if isinstance(value, Registry) and value.parent is None and (names is None or value.name in names):
            for registry in list(below(value)):
                registry.import_from_location()
                yield registry


def _is_registered(name: Any, registries: list[Registry]) -> bool:
    if name in mmcv.ops.__all__:  # RoIAlign and nms, say, are looked up there
        return True
    scope, _, key = str(name).rpartition('.')
    if scope in ('', 'mmasr') and key in {**ATTENTIONS, **CONVOLUTIONS}:  # of asr and convs
        return True
    for registry in [r for r in registries if '.' not in scope and (not scope or r.scope == scope)]:
        if hasattr(registry, 'load'):  # ours import the file of a type when it is asked for
            registry.load(key)
        if key in registry.module_dict:
            return True
    # Configs of the newer style name a class by its full path.
    if scope.split('.')[0] not in TRUSTED_PACKAGES:
        return False
    try:
        found = get_object_from_string(name)
    except Exception:
        return False
    return any(found is known for registry in registries for known in registry.module_dict.values())
