"""From the config of a network with re-parameterization to that of the deployed network.

What a type becomes is said by the class itself, in its ``deployed_config``, or for other packages' classes in
:data:`mmasr.openmmlab.adapters.DEPLOYED`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from ..attention import ATTENTIONS
from ..openmmlab.adapters import DEPLOYED
from ..openmmlab.config import walk, without_downloads
from ..registry import MODELS


def deployed_config(config: Config, folded: Sequence[str] = (), network: nn.Module | None = None) -> Config:
    """The config of the deployed network.

    Backbones with re-parameterization become the stock ones, ASR plugins and mmasr's hooks go, nothing is downloaded to
    initialise, and mmasr is imported only if something of it remains.

    Args:
        config (Config): The config of the trained network.
        folded (Sequence[str]): Names of the attention modules that were folded after training. Default: none.
        network (nn.Module, optional): The folded network, without these modules. Default: None, if none of them are and all
            that is folded is a stock layer.

    Returns:
        Config: A new config.
    """
    result = without_downloads(config.to_dict())
    scope = result.get('default_scope')
    if folded:
        result['model'] = _without_attention(result['model'], folded, network, scope)
    result['model'] = _deployed(result['model'], scope, network)
    result.update(load_from=None, resume=False)
    result.pop('work_dir', None)
    if 'custom_hooks' in result:  # those of mmasr are about training
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
    """The package and the registered name of what a config builds."""
    prefix, _, name = str(config.get('type', '')).rpartition('.')
    return (prefix or config.get('_scope_') or scope or '').split('.')[0], name


def _is_mmasr(config: Any) -> bool:
    return isinstance(config, dict) and _package_and_name(config)[0] == 'mmasr'


def _deployed(config: Any, scope: str | None, network: nn.Module | None = None) -> Any:
    """What a config of a model, or of a part of it, becomes: None, if nothing is left of what it builds, which is
    ``network``."""
    if isinstance(config, list | tuple):
        return type(config)(_deployed(value, scope) for value in config)
    if not isinstance(config, dict):
        return config
    scope = config.get('_scope_', scope)
    parts = dict(network.named_children()) if network is not None else {}
    config = {key: _deployed(value, scope, parts.get(key)) for key, value in config.items()}
    if 'plugins' in config:
        config['plugins'] = [plugin for plugin in config['plugins'] or [] if plugin['cfg'] is not None]
        if not config['plugins']:
            del config['plugins']
    package, name = _package_and_name(config, scope)
    if package == 'mmasr':
        MODELS.load(name)
        becomes = getattr(MODELS.module_dict.get(name), 'deployed_config', None)
    else:
        becomes = DEPLOYED.get(f'{package}.{name}')
    deployed = becomes(config, network) if becomes else config
    # What stands for another class becomes what that one does.
    return deployed if deployed is None or deployed.get('type') == config.get('type') else _deployed(deployed, scope, network)


def _without_attention(model: dict, folded: Sequence[str], network: nn.Module, scope: str | None) -> dict:
    """The config of a model some of whose attention modules are gone: of the stock network without attention where all of a
    part's are, and otherwise of that part with the modules taken out."""
    parts: dict[str, list[str]] = {}
    for name in folded:
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
    """What may be the config of the same network without attention."""
    scope, dot, name = config['type'].rpartition('.')
    if name in ('SEResNet', 'SEResNeXt') and scope in ('', 'mmpretrain'):
        rest = {key: value for key, value in config.items() if key != 'se_ratio'}
        yield {**rest, 'type': f'{scope}{dot}{name.removeprefix("SE")}'}
    if name in ('TIMMBackbone', 'TimmClassifier'):
        for prefix in ('se', 'eca'):
            if config['model_name'].startswith(prefix):
                yield {**config, 'model_name': config['model_name'].removeprefix(prefix)}
    if config.get('plugins'):
        yield {
            **config,
            'plugins': [
                p
                for p in config['plugins']
                if not (_is_mmasr(p['cfg']) and _package_and_name(p['cfg'])[1] in (*ATTENTIONS, 'DIA'))
            ]
            or None,
        }


def _fits(config: dict, network: nn.Module, scope: str | None) -> bool:
    """Whether a config builds a network with the weights of this one."""
    try:
        built = MODELS.build(_deployed(config, scope))
    except Exception:  # no such network
        return False
    shapes, expected = ({name: tensor.shape for name, tensor in m.state_dict().items()} for m in (built, network))
    return shapes == expected
