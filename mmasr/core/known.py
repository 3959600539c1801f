"""Networks that are known, their blocks, and where ASR goes in them. Needs torch only.

The paper's Fig. 7 to 11, for the networks of torchvision, timm, OpenMMLab, Hugging Face, segmentation_models_pytorch and
ultralytics; and its rule, for networks that it does not have: the end of a residual branch.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .by_class import by_class
from .merge import ADAPTERS, is_merging


def _norms(module: nn.Module) -> list[str]:
    """Names of the normalizations in a module, in their order; with those that other libraries write themselves, such as mmcv's
    SyncBatchNorm and frozen ones."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase | nn.GroupNorm) or 'BatchNorm' in type(layer).__name__
    ]


def _last_norm(block: nn.Module) -> list[str]:
    """The last normalization of a block that has its own branch, and nothing else, in the order in which it runs."""
    return _norms(block)[-1:]


def _first(*choices: str) -> Callable[[nn.Module], list[str]]:
    """The first of several choices of layers, each a line of names, that a block has."""

    def layers(block: nn.Module) -> list[str]:
        names = {name for name, _ in block.named_modules()}
        return next((choice.split() for choice in choices if names.issuperset(choice.split())), [])

    return layers


def _numbered(block: nn.Module) -> list[str]:
    """The last normalization of OpenMMLab's ResNets, named after its kind (bn3, gn3), which norm3_name says."""
    return [getattr(block, 'norm3_name', block.norm2_name)]


def _added(*names: str) -> Callable[[nn.Module], list[str] | None]:
    """Layers of a block of ultralytics, which has it as an option to be a residual one."""
    return lambda block: [*names] if getattr(block, 'add', False) else None


def _inverted_residual(block: nn.Module) -> list[str]:
    """Of ShuffleNetV2 the last normalization of the branch that computes. Of MobileNetV2 those of the depthwise and of the last
    convolution; so too where MobileNetV3 and EfficientNet have SE between the two: it is MobileNetV2's block."""
    if hasattr(block, 'branch2'):
        return [f'branch2.{name}' for name in _norms(block.branch2)[-1:]]
    return _norms(block)[-2:]


#: Classes of networks whose blocks are all that they have to scale; with the classes that some pass their parts on to, which
#: run them one after the other.
NETWORKS = {
    f'{package}.{name}': True
    for package, names in {
        'torchvision': 'ResNet VGG MobileNetV2 MobileNetV3 ShuffleNetV2 EfficientNet RegNet ConvNeXt VisionTransformer '
        'IntermediateLayerGetter',
        'timm': 'ResNet SENet VGG ByobNet EfficientNet EfficientNetFeatures MobileNetV3 MobileNetV3Features RegNet ConvNeXt '
        'VisionTransformer NaFlexVit Beit VisionTransformerSAM PyramidVisionTransformerV2 PoolingVisionTransformer '
        'ConVit FeatureDictNet',
        'mmdet': 'ResNet MobileNetV2 EfficientNet CSPDarknet CSPNeXt',
        'mmpretrain': 'ResNet VGG RepVGG MobileNetV2 MobileNetV3 ShuffleNetV2 EfficientNet ConvNeXt CSPNet VisionTransformer '
        'BEiTViT ViTSAM',
        'mmseg': 'ResNet MobileNetV2 MobileNetV3',
        'mmasr': 'MobileNet',
        'transformers': 'ResNetModel ResNetBackbone RTDetrResNetBackbone',
        'segmentation_models_pytorch': 'EfficientNetEncoder SENetEncoder',  # the others are torchvision's and timm's
        'ultralytics': 'BaseModel',
    }.items()
    for name in names.split()
}

#: Blocks of vision transformers, for which the paper has a gate and initial values of their own, and what attention and MLP
#: put out in them.
TRANSFORMER_BLOCKS = {
    'torchvision.EncoderBlock': _first('self_attention mlp.3'),
    'timm.Block': _first('attn.proj mlp.fc2'),
    'mmpretrain.TransformerEncoderLayer': _first('attn.proj ffn.layers.1'),
}

#: Classes of blocks (of a VGG the network is one), and the layers of such a block that are scaled; none of a block that is not
#: as it is known, None of one that adds nothing. A block of another library that merges its branches is scaled as a whole.
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
    # Their last layer is no normalization; a scale per channel, which is no layer, comes after it.
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

#: Modules outside blocks that have several layers, and add up nothing.
NO_BLOCKS = {
    'mmasr.DIACell': True,
    'mmasr.DIAStage': True,
    'mmcv.DepthwiseSeparableConvModule': True,
    'mmdet.CSPLayer': True,
    'mmdet.SPPBottleneck': True,
    'mmpretrain.CSPStage': True,
    'timm.NormMlpClassifierHead': True,
    'timm.Pooling': True,
    'transformers.RTDetrResNetEmbeddings': True,
    **{f'ultralytics.{name}': True for name in ('C2f', 'C3', 'C2PSA', 'Detect', 'Proto', 'Classify')},
}


def _path(*names: str) -> str:
    return '.'.join(filter(None, names))


def _blocks(name: str, module: nn.Module, is_network: bool = False) -> dict[str, list[str]]:
    """The blocks in a module: name -> names of their layers, none of a block that is not known.

    A block that is not known is a module with a forward pass of its own over two layers or more that are in no known block."""
    if by_class(ADAPTERS, module):
        return {name: [name]}
    if find := by_class(BLOCKS, module):
        layers = find(module)
        return {} if layers is None else {name: [_path(name, layer) for layer in layers]}
    blocks = {}
    for child_name, child in module.named_children():
        blocks |= _blocks(_path(name, child_name), child)
    if is_network or is_merging(module) or by_class(NO_BLOCKS, module):
        return blocks
    if type(module).forward in (nn.Sequential.forward, nn.Module.forward):  # nn.ModuleList's is the latter
        return blocks
    layers = [
        layer
        for layer_name, layer in module.named_modules(prefix=name)
        if isinstance(layer, _ConvNd | nn.Linear) and not any(layer_name.startswith(f'{block}.') for block in blocks)
    ]
    return blocks if len(layers) < 2 else {name: []}


def _known(model: nn.Module) -> dict[str, list[str]]:
    """The blocks of all networks in a model, as :func:`_blocks`."""
    blocks = {}
    for name, network in model.named_modules():
        if by_class(NETWORKS, network):
            blocks |= _blocks(name, network, is_network=True)
    return blocks


def find_sites(model: nn.Module) -> list[str]:
    """Name the layers of a network that the paper scales, or that its rule makes of a network that it does not have.

    Args:
        model (nn.Module): A network of docs/method.md's table, or one that contains some.

    Returns:
        list[str]: Names of modules, as ``model.get_submodule`` takes them; empty for a network that is not known as a whole.
    """
    blocks = _known(model).values()
    return [site for sites in blocks for site in sites] if all(blocks) else []


def no_sites(model: nn.Module) -> str:
    """Say why :func:`find_sites` finds none.

    Args:
        model (nn.Module): The network.

    Returns:
        str: What goes behind its name, with the first block that is not known.
    """
    name = next((name for name, sites in _known(model).items() if name and not sites), None)
    if name is None:
        return 'is no network whose sites are known'
    return f'is known in part only, without {name} ({type(model.get_submodule(name)).__name__})'


def find_transformer_sites(model: nn.Module) -> set[str]:
    """Name the layers of the blocks of vision transformers that the paper scales, whether the whole network is known or not.

    Args:
        model (nn.Module): Any network.

    Returns:
        set[str]: Names of modules.
    """
    return {
        _path(name, layer)
        for name, block in model.named_modules()
        if (layers := by_class(TRANSFORMER_BLOCKS, block))
        for layer in layers(block)
    }
