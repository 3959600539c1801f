"""Default sites of ASR in known networks. Needs torch only.

They follow the paper's Fig. 7 to 11 in the networks of torchvision, timm, OpenMMLab, Hugging Face,
segmentation_models_pytorch and ultralytics. In networks that the paper does not have, they follow its rule:
the end of a residual branch.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .class_lookup import lookup_by_class
from .merge import has_branches, merge_method


def _norms(module: nn.Module) -> list[str]:
    """Return the names of the normalizations in a module, in order, including other libraries' own ones."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase | nn.GroupNorm) or 'BatchNorm' in type(layer).__name__
    ]


def _last_norm(block: nn.Module) -> list[str]:
    """Return the last normalization of a block whose layers run in order, without a shortcut."""
    return _norms(block)[-1:]


def _first(*choices: str) -> Callable[[nn.Module], list[str]]:
    """Return a function that finds the first of several choices of layers in a block."""

    def layers(block: nn.Module) -> list[str]:
        names = {name for name, _ in block.named_modules()}
        return next((choice.split() for choice in choices if names.issuperset(choice.split())), [])

    return layers


def _numbered(block: nn.Module) -> list[str]:
    """Return the last normalization of an OpenMMLab ResNet block, such as bn3 or gn3."""
    return [getattr(block, 'norm3_name', block.norm2_name)]


def _added(*names: str) -> Callable[[nn.Module], list[str] | None]:
    """Return a function that returns layers of an ultralytics block, or None if it is not residual."""
    return lambda block: [*names] if getattr(block, 'add', False) else None


def _inverted_residual(block: nn.Module) -> list[str]:
    """Return the sites in blocks named InvertedResidual or MBConv.

    In ShuffleNetV2 this is the last normalization of the branch with layers. In MobileNetV2 it is the
    normalizations of the depthwise and the last convolution; also in MobileNetV3 and EfficientNet, which add
    SE between these two.
    """
    if hasattr(block, 'branch2'):
        return [f'branch2.{name}' for name in _norms(block.branch2)[-1:]]
    return _norms(block)[-2:]


#: Classes of networks whose sites are all in their blocks; including wrapper classes that run the parts of
#: one in order.
NETWORKS = {
    f'{package}.{name}': True
    for package, names in {
        'torchvision': 'ResNet VGG MobileNetV2 MobileNetV3 ShuffleNetV2 EfficientNet RegNet ConvNeXt '
        'VisionTransformer '
        'IntermediateLayerGetter',
        'timm': 'ResNet SENet VGG ByobNet EfficientNet EfficientNetFeatures MobileNetV3 MobileNetV3Features '
        'RegNet ConvNeXt '
        'VisionTransformer NaFlexVit Beit VisionTransformerSAM PyramidVisionTransformerV2 '
        'PoolingVisionTransformer '
        'ConVit FeatureDictNet',
        'mmdet': 'ResNet MobileNetV2 EfficientNet Darknet CSPDarknet CSPNeXt HRNet HourglassNet',
        'mmpretrain': 'ResNet VGG RepVGG MobileNetV2 MobileNetV3 ShuffleNetV2 EfficientNet ConvNeXt CSPNet '
        'HRNet VisionTransformer BEiTViT ViTSAM',
        'mmseg': 'ResNet MobileNetV2 MobileNetV3 HRNet',
        'mmasr': 'MobileNet',
        'transformers': 'ResNetModel ResNetBackbone RTDetrResNetBackbone',
        # Its other encoders are torchvision's and timm's.
        'segmentation_models_pytorch': 'EfficientNetEncoder SENetEncoder',
        'ultralytics': 'BaseModel',
    }.items()
    for name in names.split()
}

#: Blocks of vision transformers, for which the paper has a separate gate and initial values, and the output
#: layers of attention and MLP in them.
TRANSFORMER_BLOCKS = {
    'torchvision.EncoderBlock': _first('self_attention mlp.3'),
    'timm.Block': _first('attn.proj mlp.fc2'),
    'mmpretrain.TransformerEncoderLayer': _first('attn.proj ffn.layers.1'),
}

#: Classes of blocks (a whole VGG is one) and a function that returns the sites in such a block: empty if the
#: block's structure is unexpected, None if the block has no residual addition. A block that merges its own
#: branches is one site.
BLOCKS: dict[str, Callable[[nn.Module], list[str] | None]] = {
    # Residual branches: the last normalization before the addition.
    'torchvision.BasicBlock': _first('bn2'),
    'torchvision.Bottleneck': _first('bn3'),
    'torchvision.ResBottleneckBlock': _last_norm,
    'timm.BasicBlock': _first('bn2'),
    'timm.Bottleneck': _first('bn3', 'conv3.bn'),  # ResNet, RegNet
    'timm.Bottle2neck': _first('bn3'),
    'timm.ResNestBottleneck': _first('bn3'),
    'mmdet.BasicBlock': _numbered,
    'mmdet.Bottleneck': _numbered,
    'mmdet.ResBlock': _last_norm,  # Darknet
    'mmdet.DarknetBottleneck': _last_norm,
    'mmdet.CSPNeXtBlock': _last_norm,
    'mmpretrain.BasicBlock': _numbered,
    'mmpretrain.Bottleneck': _numbered,
    'mmpretrain.DarknetBottleneck': _last_norm,
    'mmseg.BasicBlock': _numbered,
    'mmseg.Bottleneck': _numbered,
    'transformers.ResNetBasicLayer': _first('layer.1.normalization'),
    'transformers.ResNetBottleNeckLayer': _first('layer.2.normalization'),
    'transformers.RTDetrResNetBasicLayer': _first('layer.1.normalization'),
    'transformers.RTDetrResNetBottleNeckLayer': _first('layer.2.normalization'),
    'segmentation_models_pytorch.Bottleneck': _first('bn3'),  # with SE after it
    'ultralytics.Bottleneck': _added('cv2.bn'),
    'ultralytics.SPPF': _added('cv2.bn'),
    'ultralytics.PSABlock': _added('attn.proj.bn', 'ffn.1.bn'),
    # The last layer is not a normalization; a scale per channel, which is not a layer, follows it.
    'torchvision.CNBlock': _first('block.5'),
    'timm.ConvNeXtBlock': _first('mlp.fc2'),
    'mmpretrain.ConvNeXtBlock': _first('pointwise_conv2'),
    # No branches: the normalization before every activation.
    'torchvision.VGG': _norms,
    'timm.VGG': _norms,
    'mmpretrain.VGG': _norms,
    # Depthwise convolutions.
    'torchvision.InvertedResidual': _inverted_residual,
    'torchvision.MBConv': _inverted_residual,
    'timm.DepthwiseSeparableConv': _first('bn1 bn2'),
    'timm.InvertedResidual': _first('bn2 bn3'),
    'mmdet.InvertedResidual': _inverted_residual,
    'mmpretrain.InvertedResidual': _inverted_residual,
    'segmentation_models_pytorch.MBConvBlock': _first('_bn1 _bn2'),
    'mmseg.InvertedResidual': _inverted_residual,
    'mmseg.InvertedResidualV3': _inverted_residual,
    'mmasr.MobileNet': lambda network: [f'blocks.{name}' for name in _norms(network.blocks)],
    **TRANSFORMER_BLOCKS,
}

#: Modules outside blocks that have several layers but no residual addition.
NO_BLOCKS = {
    'mmasr.DIACell': True,
    'mmasr.DIAStage': True,
    'mmcv.DepthwiseSeparableConvModule': True,
    'mmdet.CSPLayer': True,
    'mmdet.SPPBottleneck': True,
    'mmdet.HourglassModule': True,
    **dict.fromkeys(('mmdet.HRModule', 'mmpretrain.HRModule', 'mmseg.HRModule'), True),
    'mmpretrain.CSPStage': True,
    'mmpretrain.MTSPPF': True,
    'timm.NormMlpClassifierHead': True,
    'timm.Pooling': True,
    'transformers.RTDetrResNetEmbeddings': True,
    **{f'ultralytics.{name}': True for name in ('C2f', 'C3', 'C2PSA', 'Detect', 'Proto', 'Classify')},
}


def _path(*names: str) -> str:
    return '.'.join(filter(None, names))


def _blocks(name: str, module: nn.Module, is_network: bool = False) -> dict[str, list[str]]:
    """Return the blocks in a module: name -> names of their sites, empty for an unknown block.

    An unknown block is a module whose own forward pass runs at least two layers that are not in a known
    block.
    """
    if merge_method(module):
        return {name: [name]}
    if find := lookup_by_class(BLOCKS, module):
        layers = find(module)
        return {} if layers is None else {name: [_path(name, layer) for layer in layers]}
    blocks = {}
    for child_name, child in module.named_children():
        blocks |= _blocks(_path(name, child_name), child)
    if is_network or has_branches(module) or lookup_by_class(NO_BLOCKS, module):
        return blocks
    if type(module).forward in (nn.Sequential.forward, nn.Module.forward):  # nn.ModuleList's is the latter
        return blocks
    layers = [
        layer
        for layer_name, layer in module.named_modules(prefix=name)
        if isinstance(layer, _ConvNd | nn.Linear)
        and not any(layer_name.startswith(f'{block}.') for block in blocks)
    ]
    return blocks if len(layers) < 2 else {name: []}


def _known(model: nn.Module) -> dict[str, list[str]]:
    """Return the blocks of all networks in a model; see :func:`_blocks`."""
    blocks = {}
    for name, network in model.named_modules():
        if lookup_by_class(NETWORKS, network):
            blocks |= _blocks(name, network, is_network=True)
    return blocks


def find_sites(model: nn.Module) -> list[str]:
    """Find the sites of ASR in a network: the paper's, or those that follow from its rule.

    Args:
        model (nn.Module): A network listed in docs/method.md, or one that contains some.

    Returns:
        list[str]: Names of modules, for ``model.get_submodule``; empty if any part of the network is unknown.
    """
    blocks = _known(model).values()
    return [site for sites in blocks for site in sites] if all(blocks) else []


def no_sites(model: nn.Module) -> str:
    """Return why :func:`find_sites` finds nothing, as the end of a sentence."""
    name = next((name for name, sites in _known(model).items() if name and not sites), None)
    if name is None:
        return 'is not a network with known sites'
    return f'is only partly known: {name} ({type(model.get_submodule(name)).__name__}) is not'


def find_transformer_sites(model: nn.Module) -> set[str]:
    """Return the paper's sites in all blocks of vision transformers, even in an unknown network."""
    return {
        _path(name, layer)
        for name, block in model.named_modules()
        if (layers := lookup_by_class(TRANSFORMER_BLOCKS, block))
        for layer in layers(block)
    }
