"""The plain network that a benchmark starts from. A torchvision classifier does not need OpenMMLab."""

import torch
from torch import nn

from ...core.fold import fold
from ...core.merge import can_merge
from ...errors import InputError, as_input_error


def torchvision_model(name: str) -> nn.Module:
    """Build a torchvision classifier with random weights.

    Args:
        name (str): Name with package, such as ``torchvision:resnet50``.

    Returns:
        nn.Module: The classifier.

    Raises:
        InputError: If torchvision is not installed, or has no such classifier.
    """
    package, _, architecture = name.partition(':')
    if package != 'torchvision':
        raise InputError(f'{name}: only torchvision:NAME is supported; pass a config for other networks')
    try:
        from torchvision import models
    except ImportError as error:
        raise InputError(f'{name} needs torchvision: pip install torchvision') from error
    if architecture not in models.list_models(module=models):
        raise InputError(f'{name}: torchvision has no such classifier')
    return models.get_model(architecture, weights=None)


def config_model(path: str, part: str = 'whole') -> nn.Module:
    """Build the network of a config with random weights, in its training form but without ASR.

    Args:
        path (str): Config of a detector or a classifier.
        part (str): ``'whole'``, or ``'backbone'`` for the backbone alone. Default: ``'whole'``.

    Returns:
        nn.Module: The network.

    Raises:
        InputError: If OpenMMLab is not installed, if the config does not load or build, or if its network has
            no such part.
    """
    try:
        from mmengine.config import ConfigDict
        from mmengine.registry import MODELS, init_default_scope

        from ...openmmlab.config import default_scope, load_config, without_downloads
    except ImportError as error:
        raise InputError(
            f'{path}: a config needs OpenMMLab ({error}); a torchvision classifier does not'
        ) from error
    config = load_config(path)
    if 'model' not in config:
        raise InputError(f'{path}: has no model')
    init_default_scope(default_scope(config))
    with as_input_error(f'{path} does not build'):
        model = MODELS.build(ConfigDict(without_downloads(config.model.to_dict())))
    # Branches that a plain network has in training, such as RepVGG's, stay.
    fold(model, [name for name, module in model.named_modules() if can_merge(module)])
    if part == 'whole':
        return model
    if not hasattr(model, 'backbone'):
        raise InputError(f'{path}: {type(model).__name__} has no backbone')
    return model.backbone


@torch.no_grad()
def random_input(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """Return a random feature map of the shape that a layer receives.

    Args:
        model (nn.Module): A network that maps images to tensors.
        layer (str): Name of a layer or stage in it that takes one feature map.
        images (Tensor): Images of shape (N, 3, H, W).

    Returns:
        Tensor: A feature map of shape (N, C, H', W'), on the device of the images.

    Raises:
        InputError: If the network has no such layer, or the layer does not take one feature map.
    """
    shapes = []
    try:
        module = model.get_submodule(layer)
        with module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape)):
            model.eval()(images)
        return torch.randn(shapes[0], device=images.device)
    except (AttributeError, IndexError) as error:
        raise InputError(
            f'{type(model).__name__} has no layer {layer!r} that takes one feature map'
        ) from error
