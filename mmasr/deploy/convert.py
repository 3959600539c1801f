"""Weights from elsewhere as checkpoints of ASR backbones."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config

from ..core.host import Host
from ..core.scaling import scaled
from ..errors import InputError
from ..files import output_files, temporary_files
from ..openmmlab.building import build_model, load_weights
from ..openmmlab.checkpoint import read_checkpoint, write_checkpoint
from ..openmmlab.networks.resnet_cifar import ResNetCIFAR

#: Names in the code of the paper's authors, https://github.com/zhongshsh/ASR, and here.
_AUTHORS = {
    r'\.bn3\.bn\.': '.bn3.',
    r'\.bn3\.vector$': '.bn3.asr.psi',
    r'\.bn3\.attention_module\.': '.bn3.asr.attention.0.',
    r'\.attention_module\.': '.se.',
}
#: How pixels are normalized: those of CIFAR in the authors' code, those of ImageNet everywhere.
_CIFAR = {'mean': [125.307, 122.961, 113.8575], 'std': [51.5865, 50.847, 51.255], 'to_rgb': False}
_IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'to_rgb': True}


@dataclasses.dataclass
class Converted:
    """What :func:`convert` wrote.

    Attributes:
        checkpoint (Path): The checkpoint.
        config (Path): The config of its model.
        backbone (dict): The backbone in it.
        hosts (int): Number of layers with an ASR.
    """

    checkpoint: Path
    config: Path
    backbone: dict
    hosts: int


@torch.no_grad()
def convert(source: str | Path, attention: str = 'SE', out: str | Path | None = None, force: bool = False) -> Converted:
    """Turn a ResNet of the authors' code, torchvision, timm or MMPretrain into a classifier of MMPretrain on an ASR backbone.

    What the authors' code has trained on CIFAR keeps the ASR and the attention that it has. A ResNet for ImageNet, which has
    none, gets an ASR that starts as the identity, so it computes what it did.

    Args:
        source (str | Path): A state dict, or a checkpoint that holds one.
        attention (str): κ of the ASR that a ResNet for ImageNet gets. Default: SE.
        out (str | Path, optional): The checkpoint to write, ``*.pth``; its config goes beside it as ``*.py``. Default:
            ``<name>_asr.pth`` beside the input.
        force (bool): Replace what is there. Default: False.

    Returns:
        Converted: What was written.

    Raises:
        InputError: If the file can't be read, holds no such ResNet, or the authors' folded normalizations in it are not what
            its ASR gives. Then nothing is written.
    """
    source = Path(source)
    weights = read_checkpoint(source)['state_dict']
    targets = output_files(source, out or source.with_name(f'{source.name.split(".")[0]}_asr.pth'), force)
    if 'backbone.conv1.weight' in weights:  # MMPretrain
        weights = {re.sub(r'^backbone\.|^head\.(?=fc\.)', '', name): tensor for name, tensor in weights.items()}
    backbone = _backbone(weights, source, attention)
    classes, channels = weights['fc.weight'].shape
    pixels = _CIFAR if backbone['type'] == 'mmasr.ASRResNetCIFAR' else _IMAGENET
    model_config = {
        'type': 'ImageClassifier',
        'data_preprocessor': {'num_classes': classes, **pixels},
        'backbone': backbone,
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': classes, 'in_channels': channels},
    }
    config = Config({'model': model_config, 'default_scope': 'mmpretrain', 'custom_imports': {'imports': ['mmasr']}})
    model = build_model(config)
    renamed = dict(_renamed(weights))
    for name, tensor in model.state_dict().items():
        # The authors divide by nothing; files from before torch 0.4.1 don't count batches; those of ImageNet have no ASR.
        if name.endswith(('.asr.initial', 'num_batches_tracked')) or ('.asr.' in name and pixels is _IMAGENET):
            renamed.setdefault(name, tensor)
    load_weights(model, renamed, source)
    hosts = {name: module for name, module in model.backbone.named_modules() if isinstance(module, Host)}
    for name, host in hosts.items():
        _check_fold(name, host, weights, source)
    text = config.pretty_text
    with temporary_files(*targets, force=force) as (weights_file, config_file):
        config_file.write_text(text)
        write_checkpoint({'meta': {'cfg': text}, 'state_dict': model.state_dict()}, weights_file)
    return Converted(*targets, backbone, len(hosts))


def _backbone(weights: dict[str, torch.Tensor], source: Path, attention: str) -> dict:
    """The config of the backbone that weights are of."""
    blocks = {match.groups() for name in weights if (match := re.match(r'layer(\d)\.(\d+)\.', name))}
    stages = tuple(count for _, count in sorted(Counter(stage for stage, _ in blocks).items()))
    network = ResNetCIFAR if len(stages) == 3 else ResNet
    block = 'Bottleneck' if 'layer1.0.conv3.weight' in weights else 'BasicBlock'
    found = [
        depth for depth, (cls, counts) in network.arch_settings.items() if (cls.__name__, tuple(counts)) == (block, stages)
    ]
    if not found or weights.get('fc.weight', torch.empty(0)).dim() != 2:
        raise InputError(
            f'{source}: not the weights of a ResNet that is known here: stages of {list(stages)} blocks, each a {block}. Known '
            f'are the depths {_list(ResNet)} of torchvision, timm and MMPretrain, and the depths {_list(ResNetCIFAR)} of the '
            "authors' code for CIFAR, each with its fc"
        )
    if network is ResNet:
        return {
            'type': 'mmasr.ASRResNet',
            'depth': found[0],
            'out_indices': (3,),
            'norm_eval': False,
            'asr': {'attention': {'type': attention}, 'init_identity': True},
        }
    backbone = {'type': 'mmasr.ASRResNetCIFAR', 'depth': found[0]}
    if any(name.endswith('.bn3.vector') for name in weights):
        backbone['asr'] = {'attention': {'type': 'SE'}}
    if any(re.match(r'layer\d\.\d+\.attention_module\.', name) for name in weights):
        backbone['plugins'] = [{'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv3'}]
    return backbone


def _list(network: type) -> str:
    return ', '.join(map(str, sorted(network.arch_settings)))


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


def _check_fold(name: str, host: Host, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Compare a host with what the authors' code has folded, if it has."""
    theirs = {key: weights.get(f'{name}.fused_bn.{key}') for key in ('weight', 'bias')}
    if any(tensor is None for tensor in theirs.values()) or (theirs['weight'] == 1).all():
        return
    for key, ours in scaled(host, host.asr.scale()).items():
        if not torch.allclose(theirs[key].to(ours), ours, rtol=1e-4, atol=1e-4 * ours.abs().max().item()):
            raise InputError(
                f'{source}: {name}.fused_bn.{key} is not what its bn and its attention give; the file mixes two states of '
                'training, or its attention is not SE'
            )
