"""Registered backbones: a stock class and its hosts."""

from importlib.util import find_spec

from .base import ASRBackbone, WithoutAttention

__all__ = ['ASRBackbone', 'WithoutAttention']

if find_spec('mmdet'):
    from .resnet import ASRResNet, ASRResNetCIFAR, ASRResNetV1d, ASRResNeXt

    __all__ += ['ASRResNeXt', 'ASRResNet', 'ASRResNetCIFAR', 'ASRResNetV1d']

if find_spec('mmpretrain'):
    from .pretrain import (
        ASRVGG,
        ASRMobileNet,
        ASRMobileNetV2,
        ASRRepVGG,
        ASRShuffleNetV2,
        ASRShuffleNetV2CIFAR,
        ASRVisionTransformer,
    )

    __all__ += ['ASRVGG', 'ASRMobileNet', 'ASRMobileNetV2', 'ASRRepVGG', 'ASRShuffleNetV2', 'ASRShuffleNetV2CIFAR']
    __all__ += ['ASRVisionTransformer']
