"""Weights of ResNets: of ASR's authors (https://github.com/zhongshsh/ASR), torchvision, timm, MMPretrain."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.models.backbones import ResNet
from torch import nn

from ..core.host import Host
from ..core.scaling import scaled
from ..errors import InputError
from ..openmmlab.networks.resnet_cifar import ResNetCIFAR

#: Patterns of names in the authors' code -> our names.
_AUTHORS_NAMES = {
    r'\.bn3\.bn\.': '.bn3.',
    r'\.bn3\.vector$': '.bn3.asr.psi',
    r'\.bn3\.attention_module\.': '.bn3.asr.attention.0.',
    r'\.attention_module\.': '.se.',
}


def from_resnet(
    weights: dict[str, torch.Tensor], source: Path, attention: str
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Convert the weights of a ResNet to those of a classifier with a backbone of mmasr.

    Args:
        weights (dict[str, Tensor]): The weights.
        source (Path): Their file, for errors.
        attention (str): κ of the ASR that a ResNet for ImageNet gets.

    Returns:
        tuple[dict, dict[str, Tensor]]: The config of the backbone, and the weights under the names of the
            classifier.
        The weights of an ASR that starts as the identity are missing. ``num_batches_tracked`` may be missing.

    Raises:
        InputError: If they are not the weights of a supported ResNet.
    """
    if 'backbone.conv1.weight' in weights:  # MMPretrain
        weights = {
            re.sub(r'^backbone\.|^head\.(?=fc\.)', '', name): tensor for name, tensor in weights.items()
        }
    return _backbone_config(weights, source, attention), dict(_rename(weights))


def check_folds(backbone: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Check every ASR against the BatchNorm that the authors' code folded it into, if the file contains that.

    Args:
        backbone (nn.Module): The converted backbone with its weights.
        weights (dict[str, Tensor]): The authors' weights.
        source (Path): Their file, for errors.

    Raises:
        InputError: If they differ.
    """
    for name, host in backbone.named_modules():
        theirs = {key: weights.get(f'{name}.fused_bn.{key}') for key in ('weight', 'bias')}
        if (
            not isinstance(host, Host)
            or any(tensor is None for tensor in theirs.values())
            or (theirs['weight'] == 1).all()
        ):
            continue
        for key, ours in scaled(host, host.asr.scale()).items():
            if not torch.allclose(theirs[key].to(ours), ours, rtol=1e-4, atol=1e-4 * ours.abs().max().item()):
                raise InputError(
                    f'{source}: {name}.fused_bn.{key} does not match {name}.bn times its attention; the file '
                    'mixes two states of training, or its attention is not SE'
                )


def blocks_per_stage(weights: dict[str, torch.Tensor], prefix: str) -> list[int]:
    """Return the number of blocks of each stage.

    Args:
        weights (dict[str, Tensor]): The weights.
        prefix (str): The names of the stages are this prefix and a digit.

    Returns:
        list[int]: The numbers, in the order of the stages.
    """
    blocks = {match.groups() for name in weights if (match := re.match(rf'{prefix}(\d)\.(\d+)\.', name))}
    return [count for _, count in sorted(Counter(stage for stage, _ in blocks).items())]


def find_depth(weights: dict[str, torch.Tensor], network: type[nn.Module]) -> int | None:
    """Return the depth of a ResNet, which follows from the names of its weights.

    Args:
        weights (dict[str, Tensor]): The weights.
        network (type[nn.Module]): A class of ResNets with ``arch_settings``.

    Returns:
        int | None: The depth; None if the class has no such network.
    """
    block = 'Bottleneck' if 'layer1.0.conv3.weight' in weights else 'BasicBlock'
    found = (block, blocks_per_stage(weights, 'layer'))
    known = {depth: (cls.__name__, list(counts)) for depth, (cls, counts) in network.arch_settings.items()}
    return next((depth for depth, setting in known.items() if setting == found), None)


def supported_depths(network: type[nn.Module]) -> str:
    """Return the depths of a class of ResNets as text."""
    return ', '.join(map(str, sorted(network.arch_settings)))


def _backbone_config(weights: dict[str, torch.Tensor], source: Path, attention: str) -> dict:
    """Return the config of the backbone that fits the weights."""
    blocks = blocks_per_stage(weights, 'layer')
    network = ResNetCIFAR if len(blocks) == 3 else ResNet
    depth = find_depth(weights, network)
    if depth is None or weights.get('fc.weight', torch.empty(0)).dim() != 2:
        raise InputError(
            f'{source}: not the weights of a supported ResNet: stages of {blocks} blocks. Supported are the '
            f'depths {supported_depths(ResNet)} of torchvision, timm and MMPretrain, and the depths '
            f"{supported_depths(ResNetCIFAR)} of the code of ASR's authors for CIFAR, each with its fc; and "
            "the networks of OREPA's authors"
        )
    if network is ResNet:
        return {
            'type': 'mmasr.ASRResNet',
            'depth': depth,
            'out_indices': (3,),
            'norm_eval': False,
            'asr': {'attention': {'type': attention}, 'init_identity': True},
        }
    backbone = {'type': 'mmasr.ASRResNetCIFAR', 'depth': depth}
    if any(name.endswith('.bn3.vector') for name in weights):
        backbone['asr'] = {'attention': {'type': 'SE'}}
    if any(re.match(r'layer\d\.\d+\.attention_module\.', name) for name in weights):
        backbone['plugins'] = [{'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv3'}]
    return backbone


def _rename(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights under the names of a classifier of MMPretrain."""
    for name, tensor in weights.items():
        if '.fused_bn.' in name:
            if name.replace('.fused_bn.', '.bn.') in weights:
                continue  # the file also contains the BatchNorm and the ASR that it was folded from
            name = name.replace('.fused_bn.', '.')  # without these, it is an ordinary BatchNorm
        for pattern, ours in _AUTHORS_NAMES.items():
            name = re.sub(pattern, ours, name)
        if name.endswith('.asr.psi'):
            tensor = tensor.reshape(1, -1)
        yield ('head.' if name.startswith('fc.') else 'backbone.') + name, tensor
