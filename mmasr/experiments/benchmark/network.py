"""The plain network that a benchmark starts from. A classifier of torchvision needs nothing of OpenMMLab."""

import torch
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


@torch.no_grad()
def map_before(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """A random map of the shape that a layer of a network gets.

    Args:
        model (nn.Module): A network that maps images to tensors.
        layer (str): Name of a layer or stage in it, which takes one map.
        inputs (Tensor): Images of shape (N, 3, H, W).

    Returns:
        Tensor: (N, C, H', W').

    Raises:
        InputError: If the network has no such layer, or it does not take one map.
    """
    shapes = []
    try:
        hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
        model.eval()(inputs)
        hook.remove()
        return torch.randn(shapes[0], device=inputs.device)
    except (AttributeError, IndexError):
        raise InputError(f'{type(model).__name__} has no layer {layer!r} that it gives one map to') from None
