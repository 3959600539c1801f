"""Convert weights of other code to checkpoints of mmasr's backbones."""

import dataclasses
from pathlib import Path

import torch
from mmengine.config import Config

from ..convolutions.orepa import OREPA
from ..core.asr import ASR
from ..core.fold import fold
from ..core.host import find_reparameterizations
from ..files import output_files, temporary_files
from ..openmmlab.building import load_weights
from ..untrusted import open_checkpoint
from .convert_asr import check_folds, from_resnet
from .convert_efficientnet import from_efficientnet, is_efficientnet
from .convert_orepa import from_official_orepa, is_official_orepa
from .deployed_config import deployed_config
from .saving import write_checkpoint

#: Normalization of pixels: for CIFAR as in the code of ASR's authors, for ImageNet as everywhere, and for
#: EfficientNet-Lite from -1 to 1.
_CIFAR = {'mean': [125.307, 122.961, 113.8575], 'std': [51.5865, 50.847, 51.255], 'to_rgb': False}
_IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'to_rgb': True}
_LITE = {'mean': [127.5] * 3, 'std': [127.5] * 3, 'to_rgb': True}


@dataclasses.dataclass
class Converted:
    """Result of :func:`convert`.

    Attributes:
        checkpoint (Path): The checkpoint.
        config (Path): Config of its model.
        backbone (dict): Config of the backbone in it.
        asrs (int): Number of layers with an ASR.
        orepas (int): Number of convolutions with OREPA.
    """

    checkpoint: Path
    config: Path
    backbone: dict
    asrs: int
    orepas: int


@torch.no_grad()
def convert(
    source: str | Path, attention: str | None = 'SE', out: str | Path | None = None, force: bool = False
) -> Converted:
    """Convert weights of other code to an MMPretrain classifier with a backbone of mmasr.

    The classifier computes the same outputs.

    - ResNets of torchvision, timm or MMPretrain for ImageNet get an ASR that starts as the identity.
    - EfficientNets B0 to B7 and Lite0 to Lite4 of EfficientNet-PyTorch become timm's, with such an ASR.
    - ResNets of ASR's authors, trained on CIFAR, keep their ASR and attention.
    - ResNets, ResNeXts and RepVGGs of OREPA's authors keep OREPA; deployed ones become plain networks.

    Args:
        source (str | Path): A state dict, or a checkpoint that contains one.
        attention (str, optional): κ of the ASR for networks of a library; None to fold everything, for a
            plain network. Default: SE.
        out (str | Path, optional): The checkpoint to write, ``*.pth``; its config is written next to it as
            ``*.py``. Default: ``<name>_asr.pth`` next to the input, or ``<name>_plain.pth``.
        force (bool): Replace existing files. Default: False.

    Returns:
        Converted: What was written.

    Raises:
        InputError: If the file cannot be read or contains another network; or if numbers in it that follow
            from others, or that the authors' code fixes, have other values. Then nothing is written.
    """
    source = Path(source)
    opened = open_checkpoint(source)
    weights = opened.content['state_dict']
    kappa, form = ('SE', 'plain') if attention is None else (attention, 'asr')
    targets = output_files(
        [source], out or source.with_name(f'{source.name.split(".")[0]}_{form}.pth'), force
    )
    if is_official_orepa(weights):
        backbone, renamed = from_official_orepa(weights, source)
    elif is_efficientnet(weights):
        backbone, renamed = from_efficientnet(weights, source, kappa)
    else:
        backbone, renamed = from_resnet(weights, source, kappa)
    classes, channels = renamed['head.fc.weight'].shape
    pixels = _CIFAR if backbone['type'] == 'mmasr.ASRResNetCIFAR' else _IMAGENET
    if 'lite' in backbone.get('backbone', {}).get('model_name', ''):
        pixels = _LITE
    model_config = {
        'type': 'ImageClassifier',
        'data_preprocessor': {'num_classes': classes, **pixels},
        'backbone': backbone,
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': classes, 'in_channels': channels},
    }
    config = Config(
        {'model': model_config, 'default_scope': 'mmpretrain', 'custom_imports': {'imports': ['mmasr']}}
    )
    model = opened.build(config)
    for name, tensor in model.state_dict().items():
        # ASR's authors do not divide by an initial scale. Files from before torch 0.4.1 and deployed layers
        # do not count batches. Weights of libraries have no ASR.
        if name.endswith(('.asr.initial', 'num_batches_tracked')) or (
            '.asr.' in name and pixels is not _CIFAR
        ):
            renamed.setdefault(name, tensor)
    load_weights(model, renamed, source)
    check_folds(model.backbone, weights, source)
    if attention is None:
        model = fold(model)
        config = deployed_config(config, network=model)
    found = [part for _, _, part in find_reparameterizations(model.backbone)]
    text = config.pretty_text
    with temporary_files(*targets, force=force) as (weights_file, config_file):
        config_file.write_text(text)
        write_checkpoint({'meta': {'cfg': text}, 'state_dict': model.state_dict()}, weights_file)
    counts = (sum(isinstance(part, kind) for part in found) for kind in (ASR, OREPA))
    return Converted(*targets, config.model.backbone, *counts)
