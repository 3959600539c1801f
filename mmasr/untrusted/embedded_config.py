"""Parse the config inside a checkpoint, reduce it to what deploying needs, and check it.

A model that is not allowed is refused. Data that is not allowed is left out, unless it is to be read.
"""

import dataclasses
import importlib
import itertools
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmcv.ops
import mmengine.registry.root
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import import_modules_from_strings

from ..attention import ATTENTIONS, registered_name
from ..core.reparameterization import (
    REPARAMETERIZATIONS,
    ParameterReparameterization,
    Reparameterization,
)
from ..errors import InputError
from ..openmmlab.config import default_scope, registries_below, scoped_name, walk
from ..openmmlab.evaluation import calibration_dataset, quiet
from .allowlist import (
    DATA,
    LOADER,
    MODEL,
    NUMBERS_OR_FILES,
    PACKAGES,
    PATHS,
    allowed_arguments,
    forbidden_arguments,
    is_below,
    path_of,
    reason_against,
)
from .config_text import parse_config

#: Parts of a config that deploying needs: those of the model, and those for evaluation.
_MODEL_PARTS = ('model', 'data_preprocessor')
_DATA_PARTS = tuple('test_dataloader test_evaluator test_cfg test_pipeline metainfo classes palette'.split())
#: The part with the images for calibration, which is made from the training data.
_CALIBRATION = 'calibration_dataset'
#: A part that only tells which metric is the main one; without the rest of it, a runner would not build.
MAIN_METRIC = 'default_hooks'

_DOTTED = re.compile(r'\w+(\.\w+)*', re.ASCII)
_WORD = re.compile(r'[\w @+-]*', re.ASCII)
#: Words with a dot or slash: sizes of RegNet and ConvMixer, timm's names with a tag, modules of
#: mmasr.WithoutAttention, and suffixes of images.
_WORDS = {
    'arch': re.compile(r'regnet[xy]_\d+\.\d+gf|\d+/\d+'),
    'model_name': re.compile(r'\w+\.\w+', re.ASCII),
    'modules': _DOTTED,
    **dict.fromkeys(('img_suffix', 'seg_map_suffix'), re.compile(r'\w*\.\w+', re.ASCII)),
}
_PATH = re.compile(r'[\w .,@+()/-]*')
#: Entries of a config; OpenMMLab's largest ones have some thousand.
_MAX_ENTRIES = 100_000
#: Places with ``sites``; for each, the names of all weights are searched.
_MAX_PLACES = 100
#: Largest plausible numbers. All others are limited by the sandbox, which sees what they cost. A product with
#: RoIAlign's sampling ratio overflows in mmcv's native code.
_MAX_NUMBERS = {'batch_size': 1024, 'num_workers': 64, 'sampling_ratio': 64}
_MAX_NUMBER = 2**20


def read_config(
    text: str, weights: Mapping[str, torch.Tensor], trust_imports: bool = False, calibrates: bool = False
) -> tuple[dict, dict[str, str]]:
    """Parse the config of a checkpoint as data, reduce it to what deploying needs, and check it.

    Args:
        text (str): The config.
        weights (Mapping[str, Tensor]): The checkpoint's state dict. Its names tell which layers have an ASR
            or branches: the ``sites`` of an untrusted config are not evaluated.
        trust_imports (bool): Import, and so run, all modules that the config asks for, and allow the classes
            that they register. Default: False.
        calibrates (bool): Whether the data is to be read. Default: False.

    Returns:
        tuple[dict, dict[str, str]]: The config, and the parts that were left out -> why.

    Raises:
        InputError: If it is not a config; or if its model, or data that is to be read, contains anything that
            is not allowed.
    """
    config = parse_config(text)
    if not isinstance(config.get('model'), dict):
        raise InputError('it has no model')
    _check_size(config)
    needed = ('default_scope', 'custom_imports', *_MODEL_PARTS, *_DATA_PARTS, _CALIBRATION)
    left_out = dict.fromkeys((name for name in config if name not in needed), 'deploying does not need it')
    config.update(_calibration_parts(config, calibrates))
    needed += (MAIN_METRIC,) if calibrates else ()
    config = {name: _without_initial_values(config[name]) for name in needed if config.get(name) is not None}
    if 'default_scope' not in config and (scope := default_scope(config)) in PACKAGES - {'mmengine'}:
        config['default_scope'] = scope
    imports = imports_of(config)
    config.pop('custom_imports', None)
    if imports:
        config['custom_imports'] = {'imports': imports, 'allow_failed_imports': False}
    sites = list(_take_sites(config['model']))
    if len(sites) > _MAX_PLACES:
        raise InputError(f'it has sites in {len(sites):,} places; more than {_MAX_PLACES} are not plausible')
    check = _Check(config, trust_imports)
    check.model()
    _restore_sites(sites, weights)
    _check_size(config)  # many places with many sites would be copied one by one
    for parts in (_DATA_PARTS, (_CALIBRATION,)):
        parts = [name for name in parts if name in config]
        try:
            check.data(parts)
        except InputError as error:
            if calibrates:
                raise
            left_out.update({name: str(error) for name in parts})
            config = {name: value for name, value in config.items() if name not in parts}
    return config, left_out


def _check_size(config: dict) -> None:
    if next(itertools.islice(walk(config), _MAX_ENTRIES, None), None):
        raise InputError(f'it has more than {_MAX_ENTRIES:,} entries')


def _calibration_parts(config: dict, needed: bool) -> dict:
    """Return the parts of a config that calibration needs, as far as they exist or are needed."""
    loaders = {name: config.get(name) for name in ('train_dataloader', 'test_dataloader', _CALIBRATION)}
    try:
        if not all(value is None or isinstance(value, dict) for value in loaders.values()):
            raise InputError('its train_dataloader or test_dataloader is not a dict')
        dataset = calibration_dataset(Config(loaders))
    except InputError:
        if needed:
            raise
        return {}
    hooks = config.get(MAIN_METRIC)
    checkpoint = hooks.get('checkpoint') if isinstance(hooks, dict) else None
    best = checkpoint.get('save_best') if isinstance(checkpoint, dict) else None
    return {_CALIBRATION: dataset, MAIN_METRIC: {'checkpoint': {'save_best': best}}}


def _without_initial_values(config: Any) -> Any:
    """Copy a config without ``pretrained`` and ``init_cfg``: the weights come from the checkpoint."""
    if isinstance(config, list | tuple):
        return type(config)(_without_initial_values(value) for value in config)
    if not isinstance(config, dict):
        return config
    return {
        key: _without_initial_values(value)
        for key, value in config.items()
        if key not in ('pretrained', 'init_cfg')
    }


@dataclasses.dataclass
class _Place:
    """Place in a config that had ``sites``.

    Attributes:
        config (dict): The config that had them.
        module (str): Name of the module it is for; empty for the whole network.
        kind (type[Reparameterization]): What it inserts.
        given (Any): The sites that it had.
        others (list[type[Reparameterization]]): The kinds of the other entries in the same list.
    """

    config: dict
    module: str
    kind: type[Reparameterization]
    given: Any
    others: list[type[Reparameterization]]


def _take_sites(config: Any, path: tuple[str, ...] = ()) -> Iterator[_Place]:
    """Remove the ``sites`` from the configs of backbones, and yield the places that had them."""
    if isinstance(config, dict):
        asr, convs = REPARAMETERIZATIONS['ASR'], config.get('convs')
        entries = convs if isinstance(convs, list | tuple) else [convs]
        kinds = [REPARAMETERIZATIONS.get(registered_name(entry), asr) for entry in entries]
        places = [(config, asr, []), (config.get('asr'), asr, [])]
        places += [
            (entry, kind, kinds[:i] + kinds[i + 1 :])
            for i, (entry, kind) in enumerate(zip(entries, kinds, strict=True))
        ]
        for place, kind, others in places:
            if isinstance(place, dict) and (given := place.pop('sites', None)) is not None:
                yield _Place(place, path[-1] if path else '', kind, given, others)
        for key, value in config.items():
            yield from _take_sites(value, (*path, str(key)))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from _take_sites(value, (*path, str(index)))


def _restore_sites(places: list[_Place], weights: Mapping[str, torch.Tensor]) -> None:
    """Set ``sites`` to the layers that have an ASR or branches according to the names of the weights.

    Raises:
        InputError: If the names do not tell which entry of a list has a layer, and ``sites`` is a pattern.
    """
    found: dict[tuple[str, type[Reparameterization]], list[str]] = {}
    for place in places:
        module, kind = place.module, place.kind
        if (module, kind) not in found:
            names = _layers_of(kind, weights)
            # A detector can be inside another one, and so deeper in the weights than in the config.
            inside = (name.partition(f'.{module}.')[2] if module else name[1:] for name in names)
            found[module, kind] = list(dict.fromkeys(filter(None, inside)))
        place.config['sites'] = found[module, kind]
        if alike := [other for other in place.others if _have_same_names(kind, other)]:
            if not isinstance(place.given, list | tuple):
                raise InputError(
                    f'the weights do not tell which layers are {kind.__name__} and which are '
                    f'{alike[0].__name__} of another entry in `convs`; list their names in `sites` instead '
                    'of a pattern, or pass the config with `--config`'
                )
            place.config['sites'] = [name for name in found[module, kind] if name in place.given]


def _have_same_names(kind: type[Reparameterization], other: type[Reparameterization]) -> bool:
    """Return whether a state dict may have the same names for layers of two kinds."""
    unknown = None in (_children_of(kind), _children_of(other))
    return kind is other or (kind.state_dict_marker == other.state_dict_marker and unknown)


def _children_of(kind: type[Reparameterization]) -> str | None:
    return vars(kind).get('state_dict_children')


def _layers_of(kind: type[Reparameterization], weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the layers that have a re-parameterization of a kind, each after a dot."""
    marker = f'.{kind.state_dict_marker}.'
    names = dict.fromkeys(f'.{name}'.partition(marker)[0] for name in weights if marker in f'.{name}')
    if (pattern := _children_of(kind)) is None:
        return list(names)
    children: dict[str, set[str]] = {name: set() for name in names}
    for name in weights:
        layer = f'.{name}'
        while layer:
            layer, _, child = layer.rpartition('.')
            if layer in children:
                children[layer].add(child)
    kinds = REPARAMETERIZATIONS.values()
    added = {kind.attribute for kind in kinds if issubclass(kind, ParameterReparameterization)}
    return [name for name in names if re.fullmatch(pattern, ' '.join(sorted(children[name] - added)))]


class _Check:
    """Checks a config with the allow-list.

    Args:
        config (dict): The config.
        trust_imports (bool): Allow the classes of all modules that it imports.
    """

    def __init__(self, config: dict, trust_imports: bool) -> None:
        self.config = config
        imports = imports_of(config)
        _import_modules(imports, trust_imports)
        self.trusted = {name.split('.')[0] for name in imports} - PACKAGES
        scopes = [
            config.get('default_scope', 'mmengine'),
            *(value for key, value in walk(config) if key == '_scope_'),
        ]
        for scope in scopes:
            if not isinstance(scope, str) or (scope not in PACKAGES and scope not in self.trusted):
                raise InputError(f'it has the scope {scope!r}, which is not known')
        named = {str(value).split('.')[0] for key, value in walk(config) if key == 'type'}
        self.packages = {*scopes, *(named & {*PACKAGES, *self.trusted})}
        for package in self.packages:
            with suppress(ImportError):
                importlib.import_module(f'{package}.registry')

    def model(self) -> None:
        """Check the model and its data preprocessor."""
        self._types = _Types(('model', 'task util', 'batch augment'), self.packages)
        self._reads_data = False
        for name in _MODEL_PARTS:
            self._value(name, name, self.config.get(name), self._model_arguments)

    def data(self, parts: Sequence[str]) -> None:
        """Check parts with data, and how it is loaded and evaluated."""
        if not parts:
            return
        self._types = _Types(
            ('dataset', 'transform', 'data sampler', 'function', 'metric', 'loop'), self.packages
        )
        self._reads_data = True
        for name in parts:
            value = self.config[name]
            if name.endswith('_dataloader') and isinstance(value, dict):
                self._arguments(name, value, LOADER)
            if name in ('metainfo', 'classes', 'palette'):
                _check_metainfo(name, value)
            else:
                self._value(name, name, value, self._data_arguments)

    def _value(self, where: str, key: str, value: Any, arguments: Callable) -> None:
        """Check a value of any type; ``arguments`` returns the allowed arguments of a type, None for all."""
        if isinstance(value, str):
            self._text(where, key, value)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self._value(f'{where}[{index}]', key, item, arguments)
        elif isinstance(value, dict):
            self._dict(where, key, value, arguments)
        else:
            _check_number(where, key, value)

    def _dict(self, where: str, key: str, value: dict, arguments: Callable) -> None:
        if value.get('type') is not None:
            value['type'] = self._types.registered_name(value['type'])
            allowed = arguments(where, value)
            if allowed is not None:
                self._arguments(where, value, allowed)
        if self._reads_data and isinstance(root := value.get('data_root'), str):
            for part in ('ann_file', 'data_prefix'):
                for path in (text for _, text in walk(value.get(part)) if isinstance(text, str)):
                    _check_path(f'{where}.{part}', os.path.join(root, path))
        for name, item in value.items():
            is_word = isinstance(name, str) and name.isidentifier()
            if not is_word or (name.startswith('_') and name != '_scope_'):
                raise InputError(f'{where} has the key {name!r}, which is not allowed')
            if name in ('metainfo', 'classes') and self._reads_data:
                _check_metainfo(f'{where}.{name}', item)
            elif name != 'type':
                self._value(f'{where}.{name}', key if key in PATHS else name, item, arguments)

    def _text(self, where: str, key: str, value: str) -> None:
        """Check a string: a plain word, or a path of data."""
        if key in NUMBERS_OR_FILES:
            raise InputError(f'{where} is {value[:60]!r}, which would be loaded as a file')
        if _WORD.fullmatch(value) or (key in _WORDS and _WORDS[key].fullmatch(value)):
            return
        if key in PATHS and self._reads_data and _PATH.fullmatch(value):
            _check_path(where, value)
            return
        raise InputError(
            f'{where} is {value[:60]!r}, which is not a plain word and could name a file, an address, or code'
        )

    def _arguments(self, where: str, config: dict, allowed: tuple[str, ...]) -> None:
        """Check that a config has only allowed arguments, apart from those that it switches off."""
        for key in forbidden_arguments(config, allowed):
            raise InputError(f'{where}.{key} is {str(config[key])[:60]!r}, and may not be set')

    def _model_arguments(self, where: str, config: dict) -> tuple[str, ...] | None:
        name = config['type']
        if isinstance(name, str) and name in mmcv.ops.__all__:  # RoIAlign and nms, for example
            # It reads beyond the boxes of MMDetection's extractors.
            if 'Rotated' in name and not self.trusted:
                raise InputError(f'{where} builds {name!r}, which needs rotated boxes')
            return None
        found = self._types.find(name)
        if not found and registered_name(config) in {**ATTENTIONS, **REPARAMETERIZATIONS}:  # of asr and convs
            return None
        if not found:
            raise InputError(f'{where} builds {name!r}, which no registry has for this')
        for kind in found:
            if reason := reason_against(kind, self.trusted):
                raise InputError(f'{where} builds {name!r}, which is not allowed: {reason}')
        return next((arguments for arguments in map(allowed_arguments, found) if arguments), None)

    def _data_arguments(self, where: str, config: dict) -> tuple[str, ...]:
        found = self._types.find(config['type'])
        if not found or any(path_of(kind) not in DATA for kind in found):
            raise InputError(
                f'{where} is of type {config["type"]!r}, which is not known to read only local images'
            )
        if any(path_of(kind).startswith('mmpretrain.datasets.cifar.') for kind in found):
            if config.get('download') is not False:
                raise InputError(f'{where} would download its data')
        elif config.get('download'):
            raise InputError(f'{where}.download may not be set')
        return allowed_arguments(found[0])


def _check_number(where: str, key: str, value: Any) -> None:
    if isinstance(value, bool | None):
        return
    if isinstance(value, float):
        if math.isnan(value):
            raise InputError(f'{where} is NaN')
    elif isinstance(value, int):
        most = _MAX_NUMBERS.get(key, _MAX_NUMBER)
        if abs(value) > most:
            shown = value if value.bit_length() <= 64 else f'a number of {value.bit_length()} bits'
            raise InputError(f'{where} is {shown}, and more than {most:,} is not plausible')
    else:
        raise InputError(f'{where} is {str(value)[:60]!r} ({type(value).__name__}), which is not plain data')


def _check_metainfo(where: str, value: Any, listed: bool = False) -> None:
    """Check names and colors of classes. mmengine reads a bare string as a file with names."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not (isinstance(name, str) and _DOTTED.fullmatch(name)):
                raise InputError(f'{where} has the key {name!r}, which is not allowed')
            _check_metainfo(f'{where}.{name}', item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_metainfo(where, item, listed=True)
    elif isinstance(value, str):
        if not (listed and value.isprintable()):
            raise InputError(f'{where} is {value[:60]!r}, which is not a name in a list')
    else:
        _check_number(where, '', value)


class _Types:
    """Registered classes and functions by name, of some kinds of registries."""

    def __init__(self, kinds: tuple[str, ...], packages: set[str]) -> None:
        self.registries = list(_registries(kinds, packages))

    def find(self, name: Any) -> list[object]:
        """Return everything that a name means."""
        scope, _, key = str(name).rpartition('.')
        found = []
        for registry in self.registries:
            if not scope or registry.scope == scope:
                if hasattr(registry, 'load'):  # ours import the file of a type on demand
                    registry.load(key)
                found += [registry.module_dict[key]] if key in registry.module_dict else []
        return found

    def registered_name(self, path: Any) -> Any:
        """Return the registered name of a class that new-style configs name by the path it is imported from.

        Nothing is imported: the class must be registered, and defined in that module or below it. Any other
        value is returned unchanged.
        """
        module, _, name = str(path).rpartition('.')
        if not module or self.find(path):
            return path
        if is_below(module, ['mmcv.ops']) and name in mmcv.ops.__all__:
            return name
        self.find(name)  # which imports the file of a class of ours, if that is its registered name
        for registry in self.registries:
            if hasattr(registry, 'load_module'):
                registry.load_module(module)
        found = {
            id(value): scoped_name(registry, key)
            for registry in self.registries
            for key, value in registry.module_dict.items()
            if getattr(value, '__qualname__', '') == name and is_below(value, [module])
        }
        return next(iter(found.values())) if len(found) == 1 else path


def _registries(kinds: tuple[str, ...], packages: set[str]) -> Iterator[Registry]:
    """Yield the registries of these kinds of mmengine and some packages, after importing their modules."""
    # Most have their root in mmengine. A few, such as mmpretrain's BATCH_AUGMENTS, are a package's own.
    modules = [
        mmengine.registry.root,
        *(sys.modules.get(f'{package}.registry') for package in sorted(packages)),
    ]
    for value in [value for module in modules if module for value in vars(module).values()]:
        if isinstance(value, Registry) and value.parent is None and value.name in kinds:
            for registry in list(registries_below(value)):
                if registry.scope in {'mmengine', *packages}:  # others are not needed, and may be incomplete
                    with quiet():
                        registry.import_from_location()
                    yield registry


def imports_of(config: Mapping) -> list[str]:
    """Return the modules that a config's ``custom_imports`` names.

    Raises:
        InputError: If it is not a dict with a list of names.
    """
    custom = config.get('custom_imports') or {}
    names = (custom.get('imports') or []) if isinstance(custom, dict) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError('its custom_imports is not a dict with a list of modules')
    return list(names)


def _import_modules(names: list[str], trust: bool) -> None:
    for name in names:
        known = (
            name in PACKAGES or name in {f'{package}.models' for package in PACKAGES} or is_below(name, MODEL)
        )
        if not (trust or known):
            raise InputError(f'it imports {name}, which was not run; pass `trust_imports` if you trust it')
        try:
            import_modules_from_strings(name)
        except ImportError as error:
            raise InputError(f"it imports {name}, which can't be imported: {error}") from error


def _check_path(where: str, path: str) -> None:
    """Check that a path is of a file that is read completely and not unpickled, or of a folder."""
    if Path(path).suffix.lower() not in ('', '.json', '.txt', '.bin'):
        raise InputError(f'{where} is {path!r}, which is not a .json, .txt or .bin file')
    with suppress(OSError):
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f'{where} is {path!r}, which is neither a file nor a folder')
    if any(Path(path).resolve().is_relative_to(folder) for folder in ('/dev', '/proc', '/sys')):
        raise InputError(f'{where} is {path!r}, which is not data')
