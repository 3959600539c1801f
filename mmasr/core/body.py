"""Find the convolutions that are part of a feature extractor's body. Needs torch only.

Only these get branches by default. Prediction layers start with priors, the offsets of deformable
convolutions start at zero, and the convolutions of attention compute gates or positions.
"""

import re

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..attention import ChannelAttention
from .class_lookup import lookup_by_class
from .compat import has_values

#: Classes of modules that are not part of the body, with all layers inside: attention, and fixed sums; the
#: layers around a deformable convolution; and heads.
NOT_BODY = {
    f'{package}.{name}': True
    for package, names in {
        'mmasr': 'DynamicConv',
        'torchvision': 'SqueezeExcitation DeformConv2d RPNHead RoIHeads RetinaNetHead FCOSHead SSDHead '
        'FCNHead DeepLabHead LRASPPHead',
        'timm': 'SqueezeExcite SEModule EffectiveSEModule SplitAttn ClassifierHead NormMlpClassifierHead',
        'mmcv': 'DeformConv2d ModulatedDeformConv2d',
        'mmdet': 'SELayer SplitAttentionConv2d BaseDenseHead BaseRoIHead BaseMaskHead BaseSemanticHead '
        'BBoxHead FCNMaskHead',
        'mmpretrain': 'SELayer SplitAttentionConv2d',
        'mmseg': 'SELayer SplitAttentionConv2d BaseDecodeHead',
        'segmentation_models_pytorch': 'SEModule SCSEModule SegmentationHead ClassificationHead',
        'ultralytics': 'DFL Detect',
    }.items()
    for name in names.split()
}
#: Parts of the names of such classes in any other library.
_NOT_BODY_NAME = re.compile(
    'Attention|Attn|SqueezeExcit|GatherExcit|CBAM|Cbam|NonLocal|ContextBlock|GlobalContext|DyReLU|Gating|Gate$'
    '|RelPos|PosEnc|PosConv|PositionEmbed|PositionalEnc|DeformConv|Head$'
    '|^(SE|Se|ECA|Eca)(Layer|Module|Block|Unit)?$'
)
#: Parts of the names of such convolutions, or of the sequences that contain them.
_NOT_BODY_ATTRIBUTE = re.compile('attn|attention|offset')


def body_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the convolutions in the body of a network.

    Args:
        model (nn.Module): Any network.

    Returns:
        list[str]: Names of all ``nn.Conv2d``, including subclasses, except those inside modules that
        :data:`NOT_BODY` or their names exclude; those whose weight is 0 everywhere, which must start there;
        and those whose bias is a constant other than 0, the prior of a prediction.
    """
    outside = {
        part
        for module in model.modules()
        if module is not model and _is_not_body(module)
        for part in module.modules()
    }
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer not in outside
        and not any(map(_NOT_BODY_ATTRIBUTE.search, name.split('.')[-2:]))
        and not _has_special_start(layer)
    ]


def _is_not_body(module: nn.Module) -> bool:
    return (
        isinstance(module, ChannelAttention)
        or lookup_by_class(NOT_BODY, module) is not None
        or _NOT_BODY_NAME.search(type(module).__name__) is not None
    )


@torch.no_grad()
def _has_special_start(layer: nn.Conv2d) -> bool:
    weight, bias = layer._parameters.get('weight'), layer.bias
    if weight is None or is_lazy(weight) or not has_values(weight):
        return False
    has_prior = bias is not None and bool(bias[0] != 0) and bool((bias == bias[0]).all()) and len(bias) > 1
    return has_prior or not weight.any()
