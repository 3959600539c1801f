"""From the config of a network with ASR to that of the deployed network."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmpretrain.models.backbones import RepVGG
from torch import nn

from ..attention import ATTENTIONS
from ..core.host import stock_class
from ..registry import MODELS
from .untrusted_config import walk


def deploy_config(config: Config, folded: Sequence[str] = (), network: nn.Module | None = None) -> Config:
    """The config of the deployed network.

    ASR backbones become the stock ones, branches of RepVGG and ACNet one convolution, ASR plugins and mmasr's hooks go, nothing
    is downloaded to initialise, and mmasr is imported only if something of it remains.

    Args:
        config (Config): The config of the trained network.
        folded (Sequence[str]): Names of the attention modules that were folded after training. Default: none.
        network (nn.Module, optional): The network without them, if there are some.

    Returns:
        Config: A new config.
    """
    result = without_downloads(config.to_dict())
    if folded:
        result['model'] = _without_attention(result['model'], folded, network)
    result['model'] = _without_asr(result['model'])
    result.update(load_from=None, resume=False)
    result.pop('work_dir', None)
    if 'custom_hooks' in result:  # those of mmasr are about training
        result['custom_hooks'] = [hook for hook in result['custom_hooks'] or [] if not _mmasr_name(hook)]
    custom = result.pop('custom_imports', None) or {}
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if not any(_mmasr_name(value) for _, value in walk(result)):
        imports = [name for name in imports if name.split('.')[0] != 'mmasr']
    elif 'mmasr' not in imports:
        imports.append('mmasr')
    if imports:
        result['custom_imports'] = {**custom, 'imports': imports}
    return Config(result)


def without_downloads(config: Any) -> Any:
    """A copy of a config without ``pretrained`` and ``init_cfg`` of type Pretrained: the weights come from a checkpoint."""
    if isinstance(config, list | tuple):
        return type(config)(without_downloads(value) for value in config)
    if not isinstance(config, dict):
        return config
    return {
        key: without_downloads(value)
        for key, value in config.items()
        if key != 'pretrained' and not (key == 'init_cfg' and ('type', 'Pretrained') in walk(value))
    }


def _mmasr_name(config: Any) -> str:
    """The registered name of what a config builds, if it is something of mmasr; otherwise empty."""
    scope, _, name = str(config.get('type', '')).rpartition('.') if isinstance(config, dict) else ('-', '', '')
    return name if (scope or config.get('_scope_', '')).split('.')[0] == 'mmasr' else ''


def _without_asr(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(_without_asr(value) for value in config)
    if not isinstance(config, dict):
        return config
    name = _mmasr_name(config)
    if name == 'ASRBackbone':
        return _without_asr(config['backbone'])
    config = {key: _without_asr(value) for key, value in config.items() if not (key == 'conv_cfg' and _is_acnet(value))}
    if 'plugins' in config:
        config['plugins'] = [plugin for plugin in config['plugins'] or [] if _mmasr_name(plugin['cfg']) != 'ASR']
        if not config['plugins']:
            del config['plugins']
    if name.startswith('ASR') and name != 'ASR':  # a backbone, and not the plugin
        config.pop('asr', None)
        config.pop('_scope_', None)
        stock = stock_class(MODELS.get(name))
        # Only mmasr's BasicBlock takes plugins, so a ResNet-18 or 34 that keeps attention keeps mmasr's type.
        if not (config.get('plugins') and stock.arch_settings[config['depth']][0].__name__ == 'BasicBlock'):
            config['type'] = f'{stock.__module__.split(".")[0]}.{stock.__name__}'
    scope, _, name = str(config.get('type')).rpartition('.')
    if name == 'RepVGG' and scope.split('.')[0] in ('', 'mmpretrain') and merges(config['arch']):
        config['deploy'] = True
    return config


def _is_acnet(conv_cfg: Any) -> bool:
    return isinstance(conv_cfg, dict) and conv_cfg.get('type') == 'ACNet'


def merges(arch: str | dict) -> bool:
    """Whether mmpretrain's RepVGG of this ``arch`` can merge its branches: in deploy mode it leaves its SE layers out."""
    return (RepVGG.arch_settings[arch] if isinstance(arch, str) else arch)['se_cfg'] is None


def _without_attention(model: dict, folded: Sequence[str], network: nn.Module) -> dict:
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
            if _fits(plain, built):
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
        yield {**config, 'plugins': [p for p in config['plugins'] if _mmasr_name(p['cfg']) not in ATTENTIONS] or None}


def _fits(config: dict, network: nn.Module) -> bool:
    """Whether a config builds a network with the weights of this one."""
    try:
        built = MODELS.build(_without_asr(config))
    except Exception:  # no such network
        return False
    shapes, expected = ({name: tensor.shape for name, tensor in m.state_dict().items()} for m in (built, network))
    return shapes == expected
