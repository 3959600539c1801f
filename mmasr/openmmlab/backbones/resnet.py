"""MMDetection's ResNets with ASR at the last normalization of every residual block (the paper's Fig. 7)."""

from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...core.surgery import Mixed
from ...registry import MODELS
from ..networks.resnet_cifar import ResNetCIFAR
from .base import WithASR, without_folded
from .dia import with_shared_cell


class PluginBasicBlock(Mixed, BasicBlock):
    """MMDetection's BasicBlock with plugins after its first and second convolution.

    Args:
        inplanes (int): Number of input channels.
        planes (int): Number of output channels.
        plugins (list[dict]): ``cfg`` and ``position`` of each plugin, ``after_conv1`` (after the ReLU) or
            ``after_conv2`` (before the addition).
        **kwargs: The other arguments of mmdet's BasicBlock.

    Raises:
        ValueError: If a plugin is asked for at another position.
    """

    stock = BasicBlock
    make_block_plugins = Bottleneck.make_block_plugins
    forward_plugin = Bottleneck.forward_plugin

    def __init__(self, inplanes: int, planes: int, plugins: list[dict], **kwargs) -> None:
        super().__init__(inplanes, planes, **kwargs)
        positions = ('after_conv1', 'after_conv2')
        for plugin in plugins:
            if plugin['position'] not in positions:
                raise ValueError(
                    f'a BasicBlock (ResNet-18, ResNet-34) has no position {plugin["position"]}; '
                    'it has after_conv1, and after_conv2 before the addition'
                )
        self.after_conv1_plugin_names, self.after_conv2_plugin_names = (
            self.make_block_plugins(planes, [p['cfg'] for p in plugins if p['position'] == position]) for position in positions
        )

    def forward(self, x):
        def residual(x):
            out = self.relu(self.norm1(self.conv1(x)))
            out = self.forward_plugin(out, self.after_conv1_plugin_names)
            out = self.norm2(self.conv2(out))
            out = self.forward_plugin(out, self.after_conv2_plugin_names)
            return out + (x if self.downsample is None else self.downsample(x))

        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint(residual, x, use_reentrant=False))
        return self.relu(residual(x))

    def restore_class(self) -> None:
        """Become the stock block again if ASR was the only plugin."""
        if not self.after_conv1_plugin_names and not self.after_conv2_plugin_names:
            super().restore_class()


class _WithPlugins(WithASR):
    """Adds plugins to the BasicBlocks of a ResNet of MMDetection as well, and the state that goes from one DIA to the next."""

    def make_res_layer(self, **kwargs) -> nn.Module:
        if kwargs['block'] is BasicBlock and kwargs['plugins'] is not None:
            kwargs['block'] = PluginBasicBlock
        return with_shared_cell(super().make_res_layer(**kwargs))

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> dict:
        """As of :class:`WithASR`; with attention left in BasicBlocks, or a DIA, which only ours take, its own without what is
        folded."""
        plugins = config.get('plugins') or []
        dia = any(plugin['cfg']['type'].rpartition('.')[2] == 'DIA' for plugin in plugins)
        if dia or (plugins and cls.arch_settings[config['depth']][0] is BasicBlock):
            return without_folded(config, network)
        return super().deployed_config(config, network)


@MODELS.register_module()
class ASRResNet(_WithPlugins, ResNet):
    """mmdet's ResNet with ASR, for detectors and for MMPretrain's classifiers alike.

    Args:
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`, such as
            ``dict(attention=dict(type='SE'), init_identity=True)``. Default: None, no ASR.
        convs (dict, optional): ``type`` and the options of a convolution that trains with branches, such as
            ``dict(type='ACNet')``; ``sites`` as in :func:`mmasr.attach`. Default: None, the stock convolutions.
        *args, **kwargs: The arguments of mmdet's ResNet. ``plugins`` work at every depth.
    """

    stock = ResNet


@MODELS.register_module()
class ASRResNetV1d(_WithPlugins, ResNetV1d):
    """mmdet's ResNetV1d with ASR. Arguments as of :class:`ASRResNet`."""

    stock = ResNetV1d


@MODELS.register_module()
class ASRResNeXt(_WithPlugins, ResNeXt):
    """mmdet's ResNeXt with ASR. Arguments as of :class:`ASRResNet`."""

    stock = ResNeXt


@MODELS.register_module()
class ASRResNetCIFAR(_WithPlugins, ResNetCIFAR):
    """``mmasr.ResNetCIFAR`` with ASR, the paper's network for CIFAR and STL10. Arguments as of
    :class:`ASRResNet`."""

    stock = ResNetCIFAR
