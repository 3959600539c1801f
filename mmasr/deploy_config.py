"""From the config of a network with ASR to that of the deployed network."""

from typing import Any

from mmengine.config import Config

from .embedded import walk
from .hosts import stock_class
from .registry import MODELS


def deploy_config(config: Config) -> Config:
    """The config of the deployed network.

    ASR backbones become the stock ones, ASR plugins go, nothing is downloaded to initialise, and mmasr is imported only if
    attention of it remains.

    Args:
        config (Config): The config of the trained network.

    Returns:
        Config: A new config.
    """
    result = without_downloads(config.to_dict())
    result['model'] = _without_asr(result['model'])
    result.update(load_from=None, resume=False)
    result.pop('work_dir', None)
    custom = result.pop('custom_imports', None) or {}
    imports = custom.get('imports') or []
    if not any(_mmasr_name(value) for _, value in walk(result)):
        imports = [name for name in ([imports] if isinstance(imports, str) else imports) if name.split('.')[0] != 'mmasr']
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
    config = {key: _without_asr(value) for key, value in config.items()}
    if 'plugins' in config:
        config['plugins'] = [plugin for plugin in config['plugins'] or [] if _mmasr_name(plugin['cfg']) != 'ASR']
        if not config['plugins']:
            del config['plugins']
    if name.startswith(('ASRResNet', 'ASRResNeXt')):
        config.pop('asr', None)
        config.pop('_scope_', None)
        # Only mmasr's BasicBlock takes plugins, so a ResNet-18 or 34 that keeps attention keeps mmasr's type.
        if not (config.get('plugins') and config['depth'] < 50):
            stock = stock_class(MODELS.get(name))
            config['type'] = f'{stock.__module__.split(".")[0]}.{stock.__name__}'
    return config
