"""Weights of ResNets: of the code of ASR's authors, https://github.com/zhongshsh/ASR, torchvision, timm and MMPretrain."""

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

#: Names in the authors' code, and here.
_AUTHORS = {
    r'\.bn3\.bn\.': '.bn3.',
    r'\.bn3\.vector$': '.bn3.asr.psi',
    r'\.bn3\.attention_module\.': '.bn3.asr.attention.0.',
    r'\.attention_module\.': '.se.',
}


def from_resnet(weights: dict[str, torch.Tensor], source: Path, attention: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Weights of a ResNet as those of a classifier of ours.

    Args:
        weights (dict[str, Tensor]): The weights.
        source (Path): Where they come from.
        attention (str): κ of the ASR that a ResNet for ImageNet gets.

    Returns:
        tuple[dict, dict[str, Tensor]]: The config of the backbone, and the weights under the names of a classifier with it.
        Those of an ASR that starts as the identity are missing, and what counts a BatchNorm's batches may be.

    Raises:
        InputError: If they are of no ResNet that is known here.
    """
    if 'backbone.conv1.weight' in weights:  # MMPretrain
        weights = {re.sub(r'^backbone\.|^head\.(?=fc\.)', '', name): tensor for name, tensor in weights.items()}
    return _backbone(weights, source, attention), dict(_renamed(weights))


def check_folds(backbone: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Compare every ASR with what the authors' code has folded, if it has.

    Args:
        backbone (nn.Module): With the weights in it.
        weights (dict[str, Tensor]): Theirs.
        source (Path): Where they come from.

    Raises:
        InputError: If they differ.
    """
    for name, host in backbone.named_modules():
        theirs = {key: weights.get(f'{name}.fused_bn.{key}') for key in ('weight', 'bias')}
        if not isinstance(host, Host) or any(tensor is None for tensor in theirs.values()) or (theirs['weight'] == 1).all():
            continue
        for key, ours in scaled(host, host.asr.scale()).items():
            if not torch.allclose(theirs[key].to(ours), ours, rtol=1e-4, atol=1e-4 * ours.abs().max().item()):
                raise InputError(
                    f'{source}: {name}.fused_bn.{key} is not what its bn and its attention give; the file mixes two states of '
                    'training, or its attention is not SE'
                )


def stages(weights: dict[str, torch.Tensor], prefix: str) -> list[int]:
    """Number of blocks of each stage, whose names are a prefix and a digit."""
    blocks = {match.groups() for name in weights if (match := re.match(rf'{prefix}(\d)\.(\d+)\.', name))}
    return [count for _, count in sorted(Counter(stage for stage, _ in blocks).items())]


def depth_of(weights: dict[str, torch.Tensor], network: type[nn.Module]) -> int | None:
    """The depth of a ResNet of a class, by its names; None if no such one is known."""
    block = 'Bottleneck' if 'layer1.0.conv3.weight' in weights else 'BasicBlock'
    found = (block, stages(weights, 'layer'))
    known = {depth: (cls.__name__, list(counts)) for depth, (cls, counts) in network.arch_settings.items()}
    return next((depth for depth, setting in known.items() if setting == found), None)


def depths(network: type[nn.Module]) -> str:
    """The depths of a class of ResNets, as text."""
    return ', '.join(map(str, sorted(network.arch_settings)))


def _backbone(weights: dict[str, torch.Tensor], source: Path, attention: str) -> dict:
    """The config of the backbone that weights are of."""
    blocks = stages(weights, 'layer')
    network = ResNetCIFAR if len(blocks) == 3 else ResNet
    depth = depth_of(weights, network)
    if depth is None or weights.get('fc.weight', torch.empty(0)).dim() != 2:
        raise InputError(
            f'{source}: not the weights of a ResNet that is known here: stages of {blocks} blocks. Known are the depths '
            f'{depths(ResNet)} of torchvision, timm and MMPretrain, and the depths {depths(ResNetCIFAR)} of the code of '
            "ASR's authors for CIFAR, each with its fc; and the networks of OREPA's authors"
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


def _renamed(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights under the names of a classifier of MMPretrain."""
    for name, tensor in weights.items():
        if '.fused_bn.' in name:
            if name.replace('.fused_bn.', '.bn.') in weights:
                continue  # what both are folded from is there as well
            name = name.replace('.fused_bn.', '.')  # deployed for good: an ordinary normalization
        for pattern, ours in _AUTHORS.items():
            name = re.sub(pattern, ours, name)
        if name.endswith('.asr.psi'):
            tensor = tensor.reshape(1, -1)
        yield ('head.' if name.startswith('fc.') else 'backbone.') + name, tensor
