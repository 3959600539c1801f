"""Turn the config of a network with re-parameterization into the config of the deployed network.

The deployed form of a class is defined by its own ``deployed_config``, or for classes of other packages in
:data:`mmasr.openmmlab.adapters.DEPLOYED`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from ..attention import ATTENTIONS, registered_name
from ..core.reparameterization import REPARAMETERIZATIONS
from ..errors import InputError, as_input_error
from ..openmmlab.adapters import DEPLOYED
from ..openmmlab.config import walk, without_downloads
from ..registry import MODELS


def deployed_config(config: Config, removed: Sequence[str] = (), network: nn.Module | None = None) -> Config:
    """Return the config of the deployed network.

    Backbones with re-parameterization become stock backbones. ASR plugins and mmasr's hooks are removed,
    nothing is downloaded for initialization, and mmasr is imported only if some of it remains.

    Args:
        config (Config): Config of the trained network.
        removed (Sequence[str]): Names of attention modules that were removed after training. Default: none.
        network (nn.Module, optional): The folded network, without these modules. Default: None, which is
            enough if there are none and all folded layers are stock layers.

    Returns:
        Config: A new config.

    Raises:
        InputError: If the config of the model has an unexpected structure.
    """
    result = without_downloads(config.to_dict())
    scope = result.get('default_scope')
    result['model'] = _deployed(result['model'], scope, network)
    if removed:
        model = _without_attention(result['model'], removed, network, scope)
        result['model'] = _deployed(model, scope, network)
    result.update(load_from=None, resume=False)
    result.pop('work_dir', None)
    if 'custom_hooks' in result:  # those of mmasr are for training
        result['custom_hooks'] = [hook for hook in result['custom_hooks'] or [] if not _is_mmasr(hook)]
    custom = result.pop('custom_imports', None) or {}
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if not any(_is_mmasr(value) for _, value in walk(result)):
        imports = [name for name in imports if name.split('.')[0] != 'mmasr']
    elif 'mmasr' not in imports:
        imports.append('mmasr')
    if imports:
        result['custom_imports'] = {**custom, 'imports': imports}
    return Config(result)


def _package_and_name(config: dict, scope: str | None = None) -> tuple[str, str]:
    """Return the package and the registered name of the class that a config builds."""
    prefix, _, name = str(config.get('type', '')).rpartition('.')
    return (prefix or config.get('_scope_') or scope or '').split('.')[0], name


def _is_mmasr(config: Any) -> bool:
    return isinstance(config, dict) and _package_and_name(config)[0] == 'mmasr'


def _deployed(config: Any, scope: str | None, network: nn.Module | None = None) -> Any:
    """Return the deployed form of the config of a model or a part of it; None if nothing of it remains.

    ``network`` is what the deployed form builds.
    """
    if isinstance(config, list | tuple):
        return type(config)(_deployed(value, scope) for value in config)
    if not isinstance(config, dict):
        return config
    scope = config.get('_scope_', scope)
    parts = dict(network.named_children()) if network is not None else {}
    # `convs` names a re-parameterization. A network may have the same name, such as mmpretrain's RepVGG.
    convs = config.get('convs')
    kinds = [registered_name(entry) for entry in (convs if isinstance(convs, list | tuple) else [convs])]
    is_convs = bool(kinds) and all(kind in REPARAMETERIZATIONS for kind in kinds)
    config = {
        key: value if key == 'convs' and is_convs else _deployed(value, scope, parts.get(key))
        for key, value in config.items()
    }
    if not config.get('plugins', True):
        del config['plugins']
    elif isinstance(config.get('plugins'), list | tuple):
        config['plugins'] = [plugin for plugin in config['plugins'] if not _is_removed(plugin)]
        if not config['plugins']:
            del config['plugins']
    deployed = _deployed_class(config, scope, network)
    if deployed is None or deployed.get('type') == config.get('type'):
        return deployed
    return _deployed(
        deployed, scope, network
    )  # it is the config of another class, which may have a deployed form too


def _is_removed(plugin: Any) -> bool:
    return isinstance(plugin, dict) and 'cfg' in plugin and plugin['cfg'] is None


def _deployed_class(config: dict, scope: str | None, network: nn.Module | None) -> dict | None:
    """Return what the class of a config says about its deployed form."""
    package, name = _package_and_name(config, scope)
    if package == 'mmasr':
        MODELS.load(name)
        becomes = getattr(MODELS.module_dict.get(name), 'deployed_config', None)
    else:
        becomes = DEPLOYED.get(f'{package}.{name}')
    if becomes is None:
        return config
    problem = f'the config of {package}.{name} has an unexpected structure'
    try:
        deployed = becomes(config, network)
    except (AttributeError, KeyError, TypeError) as error:  # a config that is not built can contain anything
        raise InputError(f'{problem}: {error!r}') from error
    if not isinstance(deployed, dict | None):
        raise InputError(f'{problem}: its deployed form is {deployed!r}')
    return deployed


def _without_attention(model: dict, removed: Sequence[str], network: nn.Module, scope: str | None) -> dict:
    """Return the config of a model without some of its attention modules.

    If all modules of a part are gone, this is the config of the stock network without attention; otherwise
    the part is wrapped in ``mmasr.WithoutAttention``.
    """
    parts: dict[str, list[str]] = {}
    for name in removed:
        part, _, rest = name.partition('.')
        inside = isinstance(model.get(part), dict)
        parts.setdefault(part if inside else '', []).append(rest if inside else name)
    for part, names in parts.items():
        config, built = (model[part], network.get_submodule(part)) if part else (model, network)
        for plain in _plain_configs(config):
            if _fits(plain, built, scope):
                break
        else:
            plain = {'type': 'mmasr.WithoutAttention', 'network': config, 'modules': names}
        model = {**model, part: plain} if part else plain
    return model


def _plain_configs(config: dict) -> Iterator[dict]:
    """Yield possible configs of the same network without attention."""
    scope, dot, name = config['type'].rpartition('.')
    if name in ('SEResNet', 'SEResNeXt') and scope in ('', 'mmpretrain'):
        rest = {key: value for key, value in config.items() if key != 'se_ratio'}
        yield {**rest, 'type': f'{scope}{dot}{name.removeprefix("SE")}'}
    if name in ('TIMMBackbone', 'TimmClassifier'):
        for prefix in ('se', 'eca'):
            if config['model_name'].startswith(prefix):
                yield {**config, 'model_name': config['model_name'].removeprefix(prefix)}
        if config['model_name'].startswith('regnety'):
            yield {**config, 'se_ratio': 0}
    if name == 'WithAttention' and scope == 'mmasr':
        yield config['network']
    if name == 'CSPNeXt' and scope in ('', 'mmdet'):
        yield {**config, 'channel_attention': False}
    if config.get('plugins'):
        remaining = [plugin for plugin in config['plugins'] if not _is_attention(plugin['cfg'])]
        yield {**config, 'plugins': remaining or None}


def _is_attention(config: dict) -> bool:
    return _is_mmasr(config) and _package_and_name(config)[1] in (*ATTENTIONS, 'DIA')


def _fits(config: dict, network: nn.Module, scope: str | None) -> bool:
    """Return whether a config builds a network with the same weights as another one."""
    deployed = _deployed(config, scope)
    try:
        with as_input_error('no such network exists'):
            built = MODELS.build(deployed)
    except InputError:
        return False
    shapes, expected = ({name: t.shape for name, t in m.state_dict().items()} for m in (built, network))
    return shapes == expected
