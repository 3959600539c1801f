"""The plain network that a benchmark starts from. A classifier of torchvision needs nothing of OpenMMLab."""

from torch import nn

from ...core.fold import fold
from ...core.merge import can_merge
from ...errors import InputError, one_line


def torchvision_model(name: str) -> nn.Module:
    """Build a classifier of torchvision, with random weights.

    Args:
        name (str): Such as ``torchvision:resnet50``.

    Returns:
        nn.Module: The classifier.

    Raises:
        InputError: If there is no such classifier, or no torchvision.
    """
    package, _, architecture = name.partition(':')
    if package != 'torchvision':
        raise InputError(f'{name}: only torchvision:NAME is known; give a config for other networks')
    try:
        from torchvision import models
    except ImportError:
        raise InputError(f'{name} needs torchvision: pip install torchvision') from None
    if architecture not in models.list_models(module=models):
        raise InputError(f'{name}: torchvision has no such classifier')
    return models.get_model(architecture, weights=None)


def config_model(path: str, part: str = 'whole') -> nn.Module:
    """Build the network of a config as it trains, but without ASR, with random weights.

    Args:
        path (str): A config of a detector or a classifier.
        part (str): ``'whole'``, or ``'backbone'`` for that alone. Default: ``'whole'``.

    Returns:
        nn.Module: The network.

    Raises:
        InputError: If OpenMMLab is not installed, the config does not load or build, or it has no such part.
    """
    try:
        from mmengine.config import ConfigDict
        from mmengine.registry import MODELS, init_default_scope

        from ...openmmlab.config import load_config, without_downloads
    except ImportError as error:
        raise InputError(f'{path}: a config needs OpenMMLab ({error}); a classifier of torchvision does not') from None
    config = load_config(path)
    if 'model' not in config:
        raise InputError(f'{path}: has no model')
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        model = MODELS.build(ConfigDict(without_downloads(config.model.to_dict())))
    except Exception as error:  # of whatever the config asks for
        raise InputError(one_line(f'{path} does not build', error)) from error
    # The branches of a RepVGG are there while it trains, with ASR or without.
    fold(model, [name for name, module in model.named_modules() if can_merge(module)])
    if part == 'whole':
        return model
    if not hasattr(model, 'backbone'):
        raise InputError(f'{path}: {type(model).__name__} has no backbone')
    return model.backbone
