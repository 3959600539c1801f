"""The config inside a checkpoint: data from a stranger, reduced to what deploying needs and held against a list of what is
allowed, :mod:`mmasr.deploy.allowed`.

A model that is not allowed is refused; data that are not are left out, unless they are to be read.
"""

import importlib
import itertools
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmcv.ops
import mmengine.registry.root
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import import_modules_from_strings

from ..attention import ATTENTIONS
from ..core.asr import ASR
from ..core.attach import CONVOLUTIONS
from ..core.computed import Computed
from ..errors import InputError
from ..openmmlab.config import walk
from ..openmmlab.evaluation import calibration_dataset, quiet
from .allowed import (
    ARGUMENTS,
    DATA,
    LOADER,
    MODEL,
    NUMBERS_OR_FILES,
    PACKAGES,
    PATHS,
    forbidden,
    is_below,
    path_of,
    reason_against,
)
from .config_text import parse_config

#: Parts of a config that deploying needs, the model's and those for evaluation.
_MODEL = ('model', 'data_preprocessor')
_DATA = ('test_dataloader', 'test_evaluator', 'test_cfg', 'test_pipeline', 'metainfo', 'classes', 'palette')
#: Parts that calibration needs, and no deployed config.
CALIBRATION = ('train_dataloader', 'default_hooks')

_DOTTED = re.compile(r'\w+(\.\w+)*', re.ASCII)
_WORD = re.compile(r'[\w @+-]*', re.ASCII)
#: Words with a dot or a slash: the sizes of RegNet and ConvMixer, timm's names with a tag, of mmasr.WithoutAttention, and the
#: ends of the names of images.
_WORDS = {
    'arch': re.compile(r'regnet[xy]_\d+\.\d+gf|\d+/\d+'),
    'model_name': re.compile(r'\w+\.\w+', re.ASCII),
    'modules': _DOTTED,
    **dict.fromkeys(('img_suffix', 'seg_map_suffix'), re.compile(r'\w*\.\w+', re.ASCII)),
}
_PATH = re.compile(r'[\w .,@+()/-]*')
#: Entries of a config, of which OpenMMLab's largest have some thousand, and how much of everything else is plausible.
_MOST_ENTRIES = 100_000
_MOST = {
    **{'batch_size': 1024, 'num_workers': 64, 'min_kept': 2**20},
    **dict.fromkeys(('scale', 'size', 'crop_size', 'edge', 'width', 'height', 'size_divisor'), 8192),  # pixels of an image
}


def read_config(
    text: str, weights: Mapping[str, torch.Tensor], trust_imports: bool = False, calibrated: bool = False
) -> tuple[dict, dict[str, str]]:
    """Read the config of a checkpoint as data, reduce it, and check it.

    Args:
        text (str): The config.
        weights (Mapping[str, Tensor]): The state dict that came with it. Numbers are measured by it, and it says what layers
            have an ASR or branches: a stranger's ``sites`` are not evaluated.
        trust_imports (bool): Import, and so run, any module that the config asks for, and allow what is registered there.
            Default: False.
        calibrated (bool): Whether its data are to be read. Default: False.

    Returns:
        tuple[dict, dict[str, str]]: The config, and the parts that were left out of it -> why.

    Raises:
        InputError: If it is no config, or has a model, or data that are to be read, with anything that is not allowed.
    """
    config = parse_config(text)
    if not isinstance(config.get('model'), dict):
        raise InputError('it has no model')
    kept = ('default_scope', 'custom_imports', *_MODEL, *_DATA)
    left_out = dict.fromkeys((name for name in config if name not in kept), 'deploying does not need it')
    if calibrated:
        dataset = calibration_dataset(Config({name: config.get(name) for name in ('train_dataloader', 'test_dataloader')}))
        best = config.get('default_hooks', {}).get('checkpoint', {}).get('save_best')
        config.update(train_dataloader={'dataset': dataset}, default_hooks={'checkpoint': {'save_best': best}})
        kept += CALIBRATION
    config = {name: _without_initial_values(config[name]) for name in kept if config.get(name) is not None}
    names = imported(config)
    config.pop('custom_imports', None)
    if names:
        config['custom_imports'] = {'imports': names, 'allow_failed_imports': False}
    sites = list(_take_sites(config['model']))
    check = _Check(config, weights, trust_imports)
    check.model()
    found = {}
    for place, where, kind in sites:
        named = where[-1:], kind or ASR
        place['sites'] = found[named] = found.get(named) or _sites(*named, weights)
    _check_entries(config)
    try:
        check.data()
    except InputError as error:
        if calibrated:
            raise
        left_out.update({name: str(error) for name in _DATA if name in config})
        config = {name: value for name, value in config.items() if name not in _DATA}
    return config, left_out


def check_config(config: dict, weights: Mapping[str, torch.Tensor], trust_imports: bool = False) -> None:
    """Check a config that is made of one that :func:`read_config` has read. Arguments, and what is raised, as there."""
    check = _Check(config, weights, trust_imports)
    check.model()
    check.data()


def _check_entries(config: dict) -> None:
    if next(itertools.islice(walk(config), _MOST_ENTRIES, None), None):
        raise InputError(f'it has more than {_MOST_ENTRIES:,} entries')


def _without_initial_values(config: Any) -> Any:
    """A copy of a config without ``pretrained`` and ``init_cfg``: the weights come from the checkpoint."""
    if isinstance(config, list | tuple):
        return type(config)(_without_initial_values(value) for value in config)
    if not isinstance(config, dict):
        return config
    return {key: _without_initial_values(value) for key, value in config.items() if key not in ('pretrained', 'init_cfg')}


def _take_sites(config: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[dict, tuple[str, ...], type | None]]:
    """Take the ``sites`` out of the configs of backbones; yield where they were, of which module, and of what but an ASR."""
    if isinstance(config, dict):
        for key, place in (('', config), ('asr', config.get('asr')), ('convs', config.get('convs'))):
            if isinstance(place, dict) and place.pop('sites', None) is not None:
                kind = CONVOLUTIONS.get(str(place.get('type')).removeprefix('mmasr.')) if key == 'convs' else None
                yield place, where, kind
        for key, value in config.items():
            yield from _take_sites(value, (*where, str(key)))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from _take_sites(value, (*where, str(index)))


def _sites(where: tuple[str, ...], kind: type, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """The layers of a module, the last of some names, that carry an ASR or branches, by the names of their weights."""
    mark = kind.child if issubclass(kind, Computed) else kind.mark
    names = (f'.{name}'.partition(f'.{mark}.')[0] for name in weights if f'.{mark}.' in name)
    # A detector can be inside of another one, and so further down in the weights than in the config.
    inside = (name.partition(f'.{where[-1]}.')[2] if where else name[1:] for name in names)
    return list(dict.fromkeys(filter(None, inside)))


class _Check:
    """Holds a config against what is allowed.

    Args:
        config (dict): The config.
        weights (Mapping[str, Tensor]): The state dict.
        trust_imports (bool): Allow what any module registers that it asks for.
    """

    def __init__(self, config: dict, weights: Mapping[str, torch.Tensor], trust_imports: bool) -> None:
        self.config = config
        self.weights = weights
        _check_entries(config)
        self.largest = max(2**15, *(4 * max(tensor.shape, default=0) for tensor in weights.values() if tensor.numel()))
        _import_modules(imported(config), trust_imports)
        self.trusted = {name.split('.')[0] for name in imported(config)} - PACKAGES
        scopes = {config.get('default_scope', 'mmengine'), *(value for key, value in walk(config) if key == '_scope_')}
        for scope in scopes:
            if scope not in PACKAGES and scope not in self.trusted:
                raise InputError(f'it has the scope {scope!r}, which is not known')
        named = {str(value).split('.')[0] for key, value in walk(config) if key == 'type'}
        self.packages = scopes | (named & {*PACKAGES, *self.trusted})
        for package in self.packages:
            with suppress(ImportError):
                importlib.import_module(f'{package}.registry')

    def model(self) -> None:
        """Check the model and its data preprocessor."""
        self._types = _Types(('model', 'task util', 'batch augment'), self.packages)
        for name in _MODEL:
            self._value(name, name, self.config.get(name), self._model_arguments)

    def data(self) -> None:
        """Check the data, how they are loaded and evaluated."""
        if not any(name in self.config for name in ('train_dataloader', *_DATA)):
            return
        self._types = _Types(('dataset', 'transform', 'data sampler', 'function', 'metric', 'loop'), self.packages)
        for name in ('train_dataloader', *_DATA):
            value = self.config.get(name)
            if name.endswith('_dataloader') and isinstance(value, dict):
                self._arguments(name, value, LOADER)
            if name in ('metainfo', 'classes', 'palette'):
                self._metainfo(name, value)
            else:
                self._value(name, name, value, self._data_arguments)

    def _value(self, where: str, key: str, value: Any, arguments: Any) -> None:
        """Check a value of any kind; ``arguments`` says what a type may be given, None if that is anything."""
        if value is None or isinstance(value, bool):
            return
        if isinstance(value, int):
            most = _MOST.get(key, self.largest)
            if abs(value) > most:
                raise InputError(f'{where} is {value}, and more than {most} is not plausible')
        elif isinstance(value, float):
            if math.isnan(value):
                raise InputError(f'{where} is no number')
        elif isinstance(value, str):
            self._text(where, key, value)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self._value(f'{where}[{index}]', key, item, arguments)
        elif isinstance(value, dict):
            if value.get('type') is not None:
                allowed = arguments(where, value)
                if allowed is not None:
                    self._arguments(where, value, allowed)
            if self._types.data and isinstance(root := value.get('data_root'), str):
                for part in ('ann_file', 'data_prefix'):
                    for path in (text for _, text in walk(value.get(part)) if isinstance(text, str)):
                        _check_path(f'{where}.{part}', os.path.join(root, path))
            for name, item in value.items():
                if not (isinstance(name, str) and name.isidentifier()) or (name.startswith('_') and name != '_scope_'):
                    raise InputError(f'{where} has the key {name!r}, which is not allowed')
                if name in ('metainfo', 'classes') and arguments == self._data_arguments:
                    self._metainfo(f'{where}.{name}', item)
                elif name != 'type':
                    self._value(f'{where}.{name}', key if key in PATHS else name, item, arguments)
        else:
            raise InputError(f'{where} is {value!r} ({type(value).__name__}), which is no plain data')

    def _text(self, where: str, key: str, value: str) -> None:
        """Check a string: a plain word, the name of a layer, or a path."""
        if key in NUMBERS_OR_FILES:
            raise InputError(f'{where} is {value[:60]!r}, which would be loaded as a file')
        if _WORD.fullmatch(value) or (key in _WORDS and _WORDS[key].fullmatch(value)):
            return
        if key == 'sites' and any(f'.{value}.' in f'.{name}' for name in self.weights):
            return
        if key in PATHS and self._types.data and _PATH.fullmatch(value):
            _check_path(where, value)
            return
        raise InputError(f'{where} is {value[:60]!r}, which is no plain word and could name a file, an address, or code')

    def _arguments(self, where: str, config: dict, allowed: tuple[str, ...]) -> None:
        """Check that a config has no arguments but these, and of others only what switches them off."""
        for key in forbidden(config, allowed):
            raise InputError(f'{where}.{key} is {str(config[key])[:60]!r}, and may not be set')

    def _metainfo(self, where: str, value: Any, listed: bool = False) -> None:
        """Check names and colours of classes. A bare string mmengine takes for a file with names."""
        if isinstance(value, dict):
            for name, item in value.items():
                if not (isinstance(name, str) and _DOTTED.fullmatch(name)):
                    raise InputError(f'{where} has the key {name!r}, which is not allowed')
                self._metainfo(f'{where}.{name}', item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._metainfo(where, item, listed=True)
        elif not (value is None or isinstance(value, bool | int | float)):
            name = listed and isinstance(value, str) and value.isprintable()
            if not name:
                raise InputError(f'{where} is {str(value)[:60]!r}, which is no name in a list')

    def _model_arguments(self, where: str, config: dict) -> tuple[str, ...] | None:
        name = config['type']
        if name in mmcv.ops.__all__:  # RoIAlign and nms, say, are looked up there
            return None
        found = self._types.find(name)
        if not found and str(name).removeprefix('mmasr.') in {**ATTENTIONS, **CONVOLUTIONS}:  # of asr and convs
            return None
        if not found:
            raise InputError(f'{where} builds {name!r}, which no registry has for this')
        for kind in found:
            if reason := reason_against(kind, self.trusted):
                raise InputError(f'{where} builds {name!r}, which is not allowed: {reason}')
        return next((ARGUMENTS[path] for path in map(path_of, found) if path in ARGUMENTS), None)

    def _data_arguments(self, where: str, config: dict) -> tuple[str, ...]:
        found = self._types.find(config['type'])
        arguments = [DATA[path] for path in map(path_of, found) if path in DATA]
        if not found or len(arguments) < len(found):
            raise InputError(f'{where} is of type {config["type"]!r}, which is not known to read local images only')
        if 'download' in arguments[0] and config.get('download') is not False:
            raise InputError(f'{where} would download its data')
        return arguments[0]


class _Types:
    """What is registered under a name, for some kinds of things."""

    def __init__(self, kinds: tuple[str, ...], packages: set[str]) -> None:
        self.data = 'dataset' in kinds
        self.registries = list(_registries(kinds, packages))
        self.by_path = {path_of(found): found for registry in self.registries for found in registry.module_dict.values()}

    def find(self, name: Any) -> list[object]:
        """Everything that a name or the full path of a class stands for."""
        scope, _, key = str(name).rpartition('.')
        found = []
        for registry in self.registries:
            if not scope or registry.scope == scope:
                if hasattr(registry, 'load'):  # ours import the file of a type when it is asked for
                    registry.load(key)
                found += [registry.module_dict[key]] if key in registry.module_dict else []
        return found or ([self.by_path[name]] if name in self.by_path else [])


def _registries(kinds: tuple[str, ...], packages: set[str]) -> Iterator[Registry]:
    """The registries of mmengine and some other packages, of these kinds, each with its modules imported."""

    def below(registry: Registry) -> Iterator[Registry]:
        if registry.scope in {'mmengine', *packages}:  # another package may lack what it needs, and none of it is needed here
            yield registry
        for child in registry.children.values():
            yield from below(child)

    # Most have their root in mmengine; a few, such as mmpretrain's BATCH_AUGMENTS, are a package's own.
    modules = [mmengine.registry.root, *(sys.modules.get(f'{package}.registry') for package in sorted(packages))]
    for value in [value for module in modules if module for value in vars(module).values()]:
        if isinstance(value, Registry) and value.parent is None and value.name in kinds:
            for registry in list(below(value)):
                with quiet():
                    registry.import_from_location()
                yield registry


def imported(config: Mapping) -> list[str]:
    """The modules that a config's ``custom_imports`` name."""
    names = (config.get('custom_imports') or {}).get('imports') or []
    return [names] if isinstance(names, str) else list(names)


def _import_modules(names: list[str], trust: bool) -> None:
    for name in names:
        known = name in PACKAGES or name in {f'{package}.models' for package in PACKAGES} or is_below(name, MODEL)
        if not (trust or known):
            raise InputError(f'it imports {name}, which was not run; pass `trust_imports` if you trust it')
        try:
            import_modules_from_strings(name)
        except ImportError as error:
            raise InputError(f"it imports {name}, which can't be imported: {error}") from None


def _check_path(where: str, path: str) -> None:
    """Check that a path is of a file or folder that is read to its end without unpickling."""
    if Path(path).suffix.lower() not in ('', '.json', '.txt', '.bin'):
        raise InputError(f'{where} is {path!r}, which is no .json, .txt or .bin')
    with suppress(OSError):
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f'{where} is {path!r}, which is no file and no folder')
    if any(Path(path).resolve().is_relative_to(folder) for folder in ('/dev', '/proc', '/sys')):
        raise InputError(f'{where} is {path!r}, which is no data')
