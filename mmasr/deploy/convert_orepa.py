"""Weights of OREPA's authors (https://github.com/JUGGHM/OREPA_CVPR2022), converted to our names and shapes.

Their networks consist of units, each a convolution with its normalization. In training, a unit is a plain
convolution, OREPA, DBB or a RepVGG block. A deployed unit is one convolution with a bias.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.models.backbones import ResNet
from mmpretrain.models.backbones import RepVGG

from ..convolutions.orepa import EXPANSION, frequency_prior
from ..errors import InputError
from .convert_asr import blocks_per_stage, find_depth, supported_depths

#: Names of the convolution of a deployed unit; they tell what it was in training. A ResNet cannot contain
#: deployed RepVGG blocks: in the authors' code such a block always ends with a ReLU.
_DEPLOYED = ('conv', 'or1x1_reparam', 'orepa_reparam', 'or_large_reparam', 'dbb_reparam')
_DEPLOYED_REPVGG = ('rbr_reparam', 'conv', 'orepa_reparam', 'dbb_reparam')
#: For each row of our ``scale``, the row of their ``vector``. Their order is: origin, 1x1 and average, 1x1
#: and prior, 1x1 then kxk, 1x1 at the center (not in RepVGG), depthwise separable.
_ROWS, _ROWS_REPVGG = [0, 3, 1, 2, 4, 5], [0, 3, 1, 2, 4]


def is_official_orepa(weights: dict[str, torch.Tensor]) -> bool:
    """Return whether weights have the names of OREPA's authors."""
    return any(name.startswith('stage0.') for name in weights)


def from_official_orepa(
    weights: dict[str, torch.Tensor], source: Path
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Convert weights of OREPA's authors to those of a classifier with a backbone of mmasr.

    Args:
        weights (dict[str, Tensor]): The authors' weights, in training form or deployed.
        source (Path): Their file, for errors.

    Returns:
        tuple[dict, dict[str, Tensor]]: The config of the backbone, and the weights under the names of the
        classifier. ``num_batches_tracked`` may be missing.

    Raises:
        InputError: If an entry is missing or unknown, has another shape, or other values than the constants
            in the authors' code; if a DBB is in training form; or if the network is not supported.
    """
    theirs = _OfficialWeights(weights, source)
    is_resnet = any(name.startswith('stage0.conv1.') for name in weights)
    ours = dict(_resnet(theirs) if is_resnet else _repvgg(theirs))
    head = {
        'head.fc.weight': theirs.take('linear.weight', None, None),
        'head.fc.bias': theirs.take('linear.bias', None),
    }
    if theirs.left:
        raise theirs.unknown()
    backbone = _resnet_config(ours, source) if is_resnet else _repvgg_config(ours, source)
    if any('.orepa.' in name for name in ours):
        backbone['convs'] = {'type': 'OREPA'}
    return backbone, {**{f'backbone.{name}': tensor for name, tensor in ours.items()}, **head}


class _OfficialWeights:
    """The authors' weights, which are taken out one by one.

    Attributes:
        left (dict[str, Tensor]): The weights that were not taken yet.
        source (Path): Their file, for errors.
    """

    def __init__(self, weights: dict[str, torch.Tensor], source: Path) -> None:
        self.left = dict(weights)
        self.source = source

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def units(self, pattern: str) -> list[str]:
        """Return the names of the units that match a pattern."""
        return list(
            dict.fromkeys(
                match[0] for name in self.left if (match := re.match(rf'(?:{pattern})(?=\.)', name))
            )
        )

    def take(self, name: str, *shape: int | None) -> torch.Tensor:
        """Take a weight, which must have this shape; None stands for any number except 0."""
        if name not in self:
            raise InputError(f'{self.source}: {name} is missing')
        tensor = self.left.pop(name)
        if tensor.dim() != len(shape) or any(
            n != m if m else n == 0 for n, m in zip(tensor.shape, shape, strict=True)
        ):
            expected = ', '.join('any' if m is None else str(m) for m in shape)
            raise InputError(f'{self.source}: {name} has the shape {tuple(tensor.shape)}, not ({expected})')
        return tensor

    def take_fixed(self, name: str, expected: torch.Tensor) -> None:
        """Take a weight that is constant in the authors' code, and check its values."""
        found = self.take(name, *expected.shape)
        if not torch.allclose(found.to(expected), expected, rtol=0, atol=1e-5):
            raise InputError(
                f"{self.source}: {name} differs from the constant in the code of OREPA's authors"
            )

    def unknown(self, prefix: str = '') -> InputError:
        """Return an error that names the first weight that is left."""
        name = next(name for name in self.left if name.startswith(prefix))
        return InputError(f"{self.source}: {name} is not a name in the code of OREPA's authors")


def _resnet(theirs: _OfficialWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights under the names of MMDetection's ResNet."""
    for unit in theirs.units(r'stage0\.conv1|stage[1-4]\.\d+\.(?:conv[1-3]|shortcut)'):
        conv = unit.removeprefix('stage0.').replace('stage', 'layer').replace('shortcut', 'downsample.0')
        norm = conv.replace('conv', 'bn').replace('downsample.0', 'downsample.1')
        if deployed := _deployed(theirs, unit, _DEPLOYED):
            yield f'{conv}.weight', deployed['weight']
            yield from _named(norm, _norm_that_adds_bias(deployed['bias']))
        else:
            yield from _named(conv, _layer(theirs, unit))
            yield from _named(norm, _norm(theirs, f'{unit}.bn'))


def _repvgg(theirs: _OfficialWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights under the names of MMPretrain's RepVGG."""
    for unit in theirs.units(r'stage0|stage[1-4]\.\d+'):
        block = 'stem' if unit == 'stage0' else unit.replace('stage', 'stage_')
        if deployed := _deployed(theirs, unit, _DEPLOYED_REPVGG):
            yield from _named(f'{block}.branch_reparam', deployed)
        else:
            yield from _named(block, _repvgg_block(theirs, unit))


def _repvgg_block(theirs: _OfficialWeights, unit: str) -> dict[str, torch.Tensor]:
    """Return the entries of a RepVGG block in training form."""
    dense, pointwise, identity = f'{unit}.rbr_dense', f'{unit}.rbr_1x1', f'{unit}.rbr_identity'
    has_identity = f'{identity}.weight' in theirs
    if f'{dense}.weight_rbr_origin' in theirs:
        # With an identity branch, `vector` has a row for it, which the authors' code does not use.
        layer = _kxk(theirs, dense, 'weight_rbr', ('avg_conv', 'pfir_conv'), _ROWS_REPVGG, 5 + has_identity)
    elif f'{dense}.conv.weight' in theirs:
        layer = {'weight': theirs.take(f'{dense}.conv.weight', None, None, 3, 3)}
    else:
        raise InputError(
            f'{theirs.source}: {unit} is neither a RepVGG block in training form nor a deployed one; if the '
            "convert.py of OREPA's authors reads the file, convert its output"
        )
    parts = {
        'branch_3x3.conv': layer,
        'branch_3x3.norm': _norm(theirs, f'{dense}.bn'),
        'branch_1x1.conv': {'weight': theirs.take(f'{pointwise}.conv.weight', None, None, 1, 1)},
        'branch_1x1.norm': _norm(theirs, f'{pointwise}.bn'),
        **({'branch_norm': _norm(theirs, identity)} if has_identity else {}),
    }
    return {name: tensor for part, tensors in parts.items() for name, tensor in _named(part, tensors)}


def _named(layer: str, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((f'{layer}.{key}', tensor) for key, tensor in tensors.items())


def _deployed(theirs: _OfficialWeights, unit: str, forms: tuple[str, ...]) -> dict[str, torch.Tensor] | None:
    """Return weight and bias of a deployed unit; None if it is not deployed."""
    form = next((form for form in forms if f'{unit}.{form}.bias' in theirs), None)
    return form and {
        'weight': theirs.take(f'{unit}.{form}.weight', None, None, None, None),
        'bias': theirs.take(f'{unit}.{form}.bias', None),
    }


def _layer(theirs: _OfficialWeights, unit: str) -> dict[str, torch.Tensor]:
    """Return the entries of the convolution of a unit in training form."""
    if f'{unit}.conv.weight' in theirs:
        return {'weight': theirs.take(f'{unit}.conv.weight', None, None, None, None)}
    if f'{unit}.weight_or1x1_origin' in theirs:
        return _1x1(theirs, unit)
    if f'{unit}.weight_orepa_origin' in theirs:
        return _kxk(theirs, unit)
    if f'{unit}.weight0.weight_orepa_origin' in theirs:
        return _large_kernel(theirs, unit)
    if f'{unit}.dbb_origin.conv.weight' in theirs:
        raise InputError(
            f'{theirs.source}: {unit} is a DBB in training form, which unlike ours has no normalization '
            "after it; run the convert.py of OREPA's authors, and convert its output"
        )
    raise theirs.unknown(f'{unit}.')


def _1x1(theirs: _OfficialWeights, unit: str) -> dict[str, torch.Tensor]:
    """Return the entries of a 1 x 1 convolution with OREPA."""
    origin = theirs.take(f'{unit}.weight_or1x1_origin', None, None, 1, 1)
    outputs, inputs = origin.shape[:2]
    inner = min(outputs, inputs)
    return {
        'weight': origin,
        'orepa.scale': theirs.take(f'{unit}.vector', 2, outputs),
        'orepa.inner': theirs.take(f'{unit}.weight_or1x1_l2i_conv1', inner, inputs, 1, 1)[..., 0, 0],
        'orepa.outer': theirs.take(f'{unit}.weight_or1x1_l2i_conv2', outputs, inner, 1, 1)[:, None, :, 0, 0],
    }


def _kxk(
    theirs: _OfficialWeights,
    unit: str,
    branch: str = 'weight_orepa',
    points: tuple[str, ...] = ('avg_conv', 'pfir_conv', '1x1'),
    rows: list[int] = _ROWS,
    vectors: int = 6,
) -> dict[str, torch.Tensor]:
    """Return the entries of a 3 x 3 convolution with OREPA.

    Args:
        theirs (_OfficialWeights): The authors' weights.
        unit (str): Name of the unit.
        branch (str): Prefix of the names of branches. Default: ``'weight_orepa'``.
        points (tuple[str, ...]): Names of the 1 x 1 kernels before the average, before the prior, and at the
            center. Default: those in a ResNet.
        rows (list[int]): For each row of our ``scale``, the row of ``vector``. Default: those in a ResNet.
        vectors (int): Number of rows of ``vector``. Default: 6.

    Returns:
        dict[str, Tensor]: Names in a layer with our OREPA -> weights.
    """
    prefix = f'{unit}.{branch}'
    origin = theirs.take(f'{prefix}_origin', None, None, 3, 3)
    depthwise = theirs.take(f'{prefix}_gconv_dw', None, 1, 3, 3)
    outputs, own = origin.shape[:2]
    groups = max(1, len(depthwise) // (own * EXPANSION))
    inputs = own * groups
    inner = 2 * inputs if groups > 4 else inputs
    pointwise = theirs.take(f'{prefix}_gconv_pw', outputs, own * EXPANSION, 1, 1)[..., 0, 0]
    layer = {
        'weight': origin,
        'orepa.scale': theirs.take(f'{unit}.vector', vectors, outputs)[rows],
        'orepa.inner': theirs.take(f'{prefix}_1x1_kxk_idconv1', inner, own, 1, 1)[..., 0, 0],
        'orepa.outer': theirs.take(f'{prefix}_1x1_kxk_conv2', outputs, inner // groups, 3, 3)
        .flatten(2)
        .transpose(1, 2),
        'orepa.points': torch.stack(
            [theirs.take(f'{prefix}_{point}', outputs, own, 1, 1)[..., 0, 0] for point in points]
        ),
        'orepa.depthwise': depthwise.flatten(1),
        # In the authors' kernel, consecutive outputs belong to different groups.
        'orepa.pointwise': torch.cat([pointwise[group::groups].T for group in range(groups)]),
    }
    theirs.take_fixed(f'{unit}.id_tensor', torch.eye(own).repeat(inner // own, 1)[..., None, None])
    theirs.take_fixed(f'{prefix}_avg_avg', torch.full((3, 3), 1 / 9))
    theirs.take_fixed(f'{prefix}_prior', frequency_prior(outputs, 3))
    return layer


def _large_kernel(theirs: _OfficialWeights, unit: str) -> dict[str, torch.Tensor]:
    """Return the entries of a 7 x 7 convolution that is composed of three 3 x 3 ones.

    The authors' version has no 7 x 7 branch. Ours is 0 and scaled by 0, so no gradient reaches it.
    """
    parts = [_kxk(theirs, f'{unit}.weight{i}') for i in range(3)]
    origins = [part.pop('weight') for part in parts]
    outputs, inputs = origins[0].shape[:2]
    layer = {
        'weight': torch.zeros(outputs, inputs, 7, 7),
        'orepa.scale': torch.tensor([[0.0], [1.0]]).repeat(1, outputs),
        **{f'orepa.origins.{i}': origin for i, origin in enumerate(origins)},
    }
    for i, part in enumerate(parts):
        entries = {key.removeprefix('orepa.'): tensor for key, tensor in part.items()}
        layer.update(_named(f'orepa.branches.{i}', entries))
    return layer


def _norm(theirs: _OfficialWeights, name: str) -> dict[str, torch.Tensor]:
    """Return the entries of a BatchNorm."""
    norm = {
        key: theirs.take(f'{name}.{key}', None) for key in ('weight', 'bias', 'running_mean', 'running_var')
    }
    if f'{name}.num_batches_tracked' in theirs:
        norm['num_batches_tracked'] = theirs.take(f'{name}.num_batches_tracked')
    return norm


def _norm_that_adds_bias(bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the entries of a BatchNorm that only adds the bias of a deployed convolution."""
    return {
        'weight': torch.full_like(bias, math.sqrt(1 + 1e-5)),  # 1e-5 is the ε of BatchNorm
        'bias': bias,
        'running_mean': torch.zeros_like(bias),
        'running_var': torch.ones_like(bias),
    }


def _resnet_config(weights: dict[str, torch.Tensor], source: Path) -> dict:
    """Return the config of the ResNet that fits weights under the names of MMDetection."""
    depth, kernel = find_depth(weights, ResNet), weights.get('layer1.0.conv2.weight')
    if depth is None or kernel is None:
        raise InputError(
            f"{source}: not the weights of a supported ResNet or ResNeXt of OREPA's authors: stages of "
            f'{blocks_per_stage(weights, "layer")} blocks. Supported are the depths '
            f'{supported_depths(ResNet)}'
        )
    channels, groups = len(weights['conv1.weight']), len(kernel) // kernel.shape[1]
    return {
        'type': 'mmasr.ASRResNeXt' if groups > 1 else 'mmasr.ASRResNet',
        'depth': depth,
        **({'base_channels': channels} if channels != 64 else {}),
        **({'groups': groups, 'base_width': kernel.shape[1]} if groups > 1 else {}),
        'out_indices': (3,),
        'norm_eval': False,
    }


def _repvgg_config(weights: dict[str, torch.Tensor], source: Path) -> dict:
    """Return the config of the RepVGG that fits weights under the names of MMPretrain."""
    is_deployed = 'stem.branch_reparam.weight' in weights
    kernel = 'branch_reparam.weight' if is_deployed else 'branch_3x3.conv.weight'
    blocks = blocks_per_stage(weights, 'stage_')
    widths = [len(weights.get(f'stage_{stage}.0.{kernel}', ())) for stage in range(1, 5)]
    known = {
        arch: (
            setting['num_blocks'],
            [int(64 * 2**stage * factor) for stage, factor in enumerate(setting['width_factor'])],
        )
        for arch, setting in RepVGG.arch_settings.items()
        if not setting['group_layer_map'] and not setting['se_cfg']  # the authors' networks have neither
    }
    for arch, setting in known.items():
        if setting == (blocks, widths):
            return {
                'type': 'mmasr.ASRRepVGG',
                'arch': arch,
                'out_indices': (3,),
                **({'deploy': True} if is_deployed else {}),
            }
    raise InputError(
        f"{source}: not the weights of a supported RepVGG of OREPA's authors: stages of {blocks} blocks with "
        f'{widths} channels. Supported are {", ".join(known)}'
    )
