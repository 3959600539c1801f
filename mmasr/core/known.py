"""The blocks of known networks, and where ASR goes in them. Needs torch only.

The paper's Fig. 7 to 11, for the networks of torchvision, timm and OpenMMLab.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .by_class import by_class
from .merge import ADAPTERS


def _norms(module: nn.Module) -> list[str]:
    """Names of the normalizations in a module, in their order."""
    return [
        name
        for name, layer in module.named_modules()
        # mmcv's SyncBatchNorm is not one of torch's.
        if isinstance(layer, _NormBase | nn.GroupNorm) or type(layer).__name__ == 'SyncBatchNorm'
    ]


def _last_before_addition(block: nn.Module) -> list[str]:
    """The last normalization of a residual block; OpenMMLab names it after its kind (bn3, gn3) and keeps that in norm3_name."""
    names = (*(getattr(block, f'norm{i}_name', None) for i in (3, 2)), 'bn3', 'bn2')
    return [name for name in names if name and hasattr(block, name)][:1]


def _inverted_residual(block: nn.Module) -> list[str]:
    """Of ShuffleNetV2 the last normalization of the branch that computes, of MobileNets those of the depthwise and of the last
    convolution."""
    if hasattr(block, 'branch2'):
        return [f'branch2.{name}' for name in _norms(block.branch2)[-1:]]
    return _norms(block)[-2:]


def _transformer(block: nn.Module) -> list[str]:
    """What attention and MLP put out."""
    pairs = (
        ('attn.proj', 'ffn.layers.1'),  # MMPretrain
        ('attn.proj', 'mlp.fc2'),  # timm
        ('self_attention', 'mlp.3'),  # torchvision
    )
    names = {name for name, _ in block.named_modules()}
    return next((list(pair) for pair in pairs if names.issuperset(pair)), [])


#: Classes of blocks, and the layers of such a block that the paper scales. A block of another library that merges its branches
#: is scaled as a whole.
BLOCKS: dict[str, Callable[[nn.Module], list[str]]] = {
    'BasicBlock': _last_before_addition,
    'Bottleneck': _last_before_addition,
    'VGG': _norms,
    'InvertedResidual': _inverted_residual,
    'DepthwiseSeparableConv': _norms,  # timm
    'DepthwiseSeparableConvModule': _norms,  # mmcv
    'TransformerEncoderLayer': _transformer,
    'EncoderBlock': _transformer,
    'Block': _transformer,
}


def find_sites(model: nn.Module) -> list[str]:
    """Name the layers of a network that the paper scales.

    Args:
        model (nn.Module): A ResNet, ResNeXt, VGG with batch normalization, RepVGG, ShuffleNetV2, MobileNet or ViT of
            torchvision, timm or OpenMMLab, or a network that contains one.

    Returns:
        list[str]: Names of modules, as ``model.get_submodule`` takes them; empty for an unknown network.
    """
    sites = []
    for name, block in model.named_modules():
        kind = next((cls.__name__ for cls in type(block).__mro__ if cls.__name__ in BLOCKS), None)
        if by_class(ADAPTERS, block):
            sites.append(name)
        elif kind:
            sites += ['.'.join(filter(None, (name, layer))) for layer in BLOCKS[kind](block)]
    return sites


def find_transformer_sites(model: nn.Module) -> set[str]:
    """Name the layers of a network that are what attention and MLP of a vision transformer's block put out, for which the paper
    has a gate and initial values of their own."""
    return {
        f'{name}.{layer}'.lstrip('.')
        for name, block in model.named_modules()
        if any(base.__name__ in BLOCKS and BLOCKS[base.__name__] is _transformer for base in type(block).__mro__)
        for layer in _transformer(block)
    }
