"""Check that a deployed config differs from the trained one only by rule.

The check does not use the code that makes deployed configs: it compares both, item by item.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError, shortened

#: Parts of a config that deploying replaces or removes as a whole: they are about training.
_TRAINING = (
    'load_from',
    'resume',
    'work_dir',
    'custom_hooks',
    'custom_imports',
    'train_dataloader',
    'default_hooks',
)
#: Settings of a backbone that folding removes, or sets for what remains.
_FOLDED = ('asr', 'convs', 'sites', 'deploy')
#: Networks whose branches are merged, and the setting that says so.
_MERGED = {
    **dict.fromkeys(('RepVGG', 'MobileOne', 'RepMLPNet', 'LeViT', 'RIFormer'), ('deploy',)),
    'RepLKNet': ('small_kernel_merged',),
}
#: Classes of mmasr around a network, and the setting with its config.
_AROUND = {'ASRBackbone': 'backbone', 'WithAttention': 'network'}
#: Networks with attention whose stock form has another type or name, and these settings.
_WITH_ATTENTION = {
    'SEResNet': ('type', 'se_ratio'),
    'SEResNeXt': ('type', 'se_ratio'),
    'TIMMBackbone': ('model_name', 'se_ratio'),
    'TimmClassifier': ('model_name', 'se_ratio'),
    'CSPNeXt': ('channel_attention',),
}


def check_deployed_config(trained: Mapping[str, Any], deployed: Mapping[str, Any]) -> list[str]:
    """Compare a deployed config with the trained one.

    Args:
        trained (Mapping[str, Any]): Config of the trained network.
        deployed (Mapping[str, Any]): Config of the deployed network.

    Returns:
        list[str]: The parts of the model that differ, all by rule, such as ``model.backbone.type``.

    Raises:
        InputError: If anything else differs; the message names it.
    """
    kept = {name: value for name, value in trained.items() if name not in _TRAINING}
    found = {name: value for name, value in deployed.items() if name not in _TRAINING}
    changes = list(_changes('', kept, found))
    if refused := [path for path, is_allowed in changes if not is_allowed]:
        raise InputError(f'the deployed config differs from the trained one in {shortened(refused)}')
    return [path for path, _ in changes]


def _changes(path: str, before: Any, after: Any) -> Iterator[tuple[str, bool]]:
    """Yield the places where two parts of a config differ, and whether a rule allows that."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _changes_of_dict(path, before, after)
    elif isinstance(before, list | tuple) and type(before) is type(after) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from _changes(f'{path}[{index}]', *pair)
    elif repr(before) != repr(after):  # repr, because NaN is not equal to itself
        yield path, False


def _changes_of_dict(path: str, before: Mapping, after: Mapping) -> Iterator[tuple[str, bool]]:
    kind = _name(before)
    if kind in _AROUND and _name(after) != kind:  # the network inside is what remains
        yield _join(path, 'type'), _is_mmasr(before)
        yield from _changes(path, before.get(_AROUND[kind]), after)
        return
    if _name(after) == 'WithoutAttention' and kind != 'WithoutAttention':
        yield _join(path, 'type'), _is_mmasr(after)
        yield from _changes(path, before, after.get('network'))
        return
    free = (
        *(_FOLDED if _is_mmasr(before) else ()),
        *_MERGED.get(kind, ()),
        *_WITH_ATTENTION.get(kind, ()),
    )
    for name in dict.fromkeys((*before, *after)):
        where = _join(path, name)
        if name in before and name in after and name not in ('type', 'plugins', *free):
            yield from _changes(where, before[name], after[name])
        elif repr(before.get(name)) != repr(after.get(name)):
            yield where, name in free or _is_removed_by_rule(name, before, after)


def _is_removed_by_rule(name: str, before: Mapping, after: Mapping) -> bool:
    old, new = before.get(name), after.get(name)
    if name == 'type':  # the stock class of a class of mmasr
        return _is_mmasr(before) and _name(before).removeprefix('ASR') == _name(after)
    if name == '_scope_':
        return _is_mmasr(before)
    if name == 'plugins':
        remaining = [repr(plugin) for plugin in new or []]
        removed = [plugin for plugin in old or [] if repr(plugin) not in remaining]
        in_order = [repr(plugin) for plugin in old or [] if repr(plugin) in remaining]
        return in_order == remaining and all(_is_mmasr(plugin.get('cfg', {})) for plugin in removed)
    if name in after:
        return False
    return name == 'pretrained' or (name == 'init_cfg' and 'Pretrained' in repr(old))


def _name(config: Mapping) -> str:
    return str(config.get('type', '')).rpartition('.')[2]


def _is_mmasr(config: Mapping) -> bool:
    return str(config.get('type', '')).startswith('mmasr.') or config.get('_scope_') == 'mmasr'


def _join(path: str, name: object) -> str:
    return f'{path}.{name}'.lstrip('.')
