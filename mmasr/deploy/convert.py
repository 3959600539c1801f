"""Weights from elsewhere as checkpoints of backbones of ours."""

import dataclasses
from pathlib import Path

import torch
from mmengine.config import Config

from ..convolutions.orepa import OREPA
from ..core.asr import ASR
from ..core.host import Host
from ..errors import InputError
from ..files import output_files, temporary_files
from ..openmmlab.building import build_model, load_weights
from ..openmmlab.checkpoint import read_checkpoint, write_checkpoint
from .convert_asr import check_folds, from_resnet
from .convert_orepa import from_orepas_authors, is_of_orepas_authors
from .restraint import restrained

#: How pixels are normalized: those of CIFAR in the code of ASR's authors, those of ImageNet everywhere.
_CIFAR = {'mean': [125.307, 122.961, 113.8575], 'std': [51.5865, 50.847, 51.255], 'to_rgb': False}
_IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'to_rgb': True}


@dataclasses.dataclass
class Converted:
    """What :func:`convert` wrote.

    Attributes:
        checkpoint (Path): The checkpoint.
        config (Path): The config of its model.
        backbone (dict): The backbone in it.
        asrs (int): Number of layers with an ASR.
        orepas (int): Number of convolutions with OREPA.
    """

    checkpoint: Path
    config: Path
    backbone: dict
    asrs: int
    orepas: int


@torch.no_grad()
def convert(source: str | Path, attention: str = 'SE', out: str | Path | None = None, force: bool = False) -> Converted:
    """Turn weights of other code into a classifier of MMPretrain on a backbone of ours, which computes what they did.

    - ResNets of torchvision, timm or MMPretrain for ImageNet get an ASR that starts as the identity.
    - ResNets of ASR's authors, trained on CIFAR, keep the ASR and the attention that they have.
    - ResNets, ResNeXts and RepVGGs of OREPA's authors keep OREPA, and are plain networks where they are deployed.

    Args:
        source (str | Path): A state dict, or a checkpoint that holds one.
        attention (str): κ of the ASR that a ResNet of a library gets. Default: SE.
        out (str | Path, optional): The checkpoint to write, ``*.pth``; its config goes beside it as ``*.py``. Default:
            ``<name>_asr.pth`` beside the input.
        force (bool): Replace what is there. Default: False.

    Returns:
        Converted: What was written.

    Raises:
        InputError: If the file can't be read, holds no such network, or numbers in it that follow from others or are fixed in
            the authors' code are other ones. Then nothing is written.
    """
    source = Path(source)
    weights = read_checkpoint(source)['state_dict']
    targets = output_files(source, out or source.with_name(f'{source.name.split(".")[0]}_asr.pth'), force)
    if is_of_orepas_authors(weights):
        backbone, renamed = from_orepas_authors(weights, source)
    else:
        backbone, renamed = from_resnet(weights, source, attention)
    classes, channels = renamed['head.fc.weight'].shape
    pixels = _CIFAR if backbone['type'] == 'mmasr.ASRResNetCIFAR' else _IMAGENET
    model_config = {
        'type': 'ImageClassifier',
        'data_preprocessor': {'num_classes': classes, **pixels},
        'backbone': backbone,
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': classes, 'in_channels': channels},
    }
    config = Config({'model': model_config, 'default_scope': 'mmpretrain', 'custom_imports': {'imports': ['mmasr']}})
    try:
        with restrained({name: tensor.numel() for name, tensor in weights.items()}):  # widths are a stranger's as well
            model = build_model(config)
    except InputError as error:
        raise InputError(f'{source}: {error}') from None
    for name, tensor in model.state_dict().items():
        # ASR's authors divide by nothing; files from before torch 0.4.1, and deployed layers, don't count batches; those of
        # libraries have no ASR.
        if name.endswith(('.asr.initial', 'num_batches_tracked')) or ('.asr.' in name and pixels is _IMAGENET):
            renamed.setdefault(name, tensor)
    load_weights(model, renamed, source)
    check_folds(model.backbone, weights, source)
    computed = [module.computed() for module in model.backbone.modules() if isinstance(module, Host)]
    text = config.pretty_text
    with temporary_files(*targets, force=force) as (weights_file, config_file):
        config_file.write_text(text)
        write_checkpoint({'meta': {'cfg': text}, 'state_dict': model.state_dict()}, weights_file)
    counts = (sum(isinstance(child, kind) for child in computed) for kind in (ASR, OREPA))
    return Converted(*targets, backbone, *counts)
