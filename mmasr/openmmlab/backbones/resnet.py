"""MMDetection's ResNets with ASR at the last normalization of every residual block (the paper's Fig. 7)."""

from collections.abc import Sequence

import torch
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...core.class_surgery import Mixin
from ...errors import InputError
from ...registry import MODELS
from ..networks.resnet_cifar import ResNetCIFAR
from .base import WithASR, without_folded
from .dia import with_shared_cell


class PluginBasicBlock(Mixin, BasicBlock):
    """MMDetection's BasicBlock with plugins after its first and second convolution.

    Args:
        inplanes (int): Number of input channels.
        planes (int): Number of output channels.
        plugins (list[dict]): ``cfg`` and ``position`` of each plugin. The position is ``after_conv1`` (after
            the ReLU) or ``after_conv2`` (before the addition).
        **kwargs: Other arguments of mmdet's BasicBlock.

    Raises:
        InputError: If a plugin has another position.
    """

    stock = BasicBlock
    make_block_plugins = Bottleneck.make_block_plugins
    forward_plugin = Bottleneck.forward_plugin

    def __init__(self, inplanes: int, planes: int, plugins: list[dict], **kwargs) -> None:
        super().__init__(inplanes, planes, **kwargs)
        positions = ('after_conv1', 'after_conv2')
        for plugin in plugins:
            if plugin['position'] not in positions:
                raise InputError(
                    f'a BasicBlock (ResNet-18, ResNet-34) has no position {plugin["position"]}; '
                    'use after_conv1, or after_conv2, which is before the addition'
                )
        self.after_conv1_plugin_names, self.after_conv2_plugin_names = (
            self.make_block_plugins(planes, [p['cfg'] for p in plugins if p['position'] == position])
            for position in positions
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a feature map (N, inplanes, H, W) to one of ``planes`` channels."""

        def residual(x: torch.Tensor) -> torch.Tensor:
            out = self.relu(self.norm1(self.conv1(x)))
            out = self.forward_plugin(out, self.after_conv1_plugin_names)
            out = self.norm2(self.conv2(out))
            out = self.forward_plugin(out, self.after_conv2_plugin_names)
            return out + (x if self.downsample is None else self.downsample(x))

        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint(residual, x, use_reentrant=False))
        return self.relu(residual(x))

    def restore_class(self) -> None:
        """Restore the stock block if no plugins are left."""
        if not self.after_conv1_plugin_names and not self.after_conv2_plugin_names:
            super().restore_class()


class _WithPlugins(WithASR):
    """Mixin for MMDetection's ResNets that also allows plugins in BasicBlocks, and DIA."""

    def make_stage_plugins(self, plugins: Sequence[dict], stage_idx: int) -> list[dict]:
        """Check the plugins and select those of a stage; see mmdet's ``ResNet``.

        Args:
            plugins (Sequence[dict]): ``cfg``, ``position`` and perhaps ``stages`` of each plugin.
            stage_idx (int): Number of the stage, from 0.

        Returns:
            list[dict]: ``cfg`` and ``position`` of each plugin of the stage.

        Raises:
            InputError: If ``plugins`` is not a list, or a plugin lacks its ``cfg`` or ``position``.
        """
        is_list = isinstance(plugins, list | tuple)
        if wrong := [plugin for plugin in plugins if not _is_plugin(plugin)] if is_list else [plugins]:
            raise InputError(
                'plugins must be a list of dicts such as '
                f"dict(cfg=dict(type='mmasr.SE'), position='after_conv2'), which {wrong[0]!r} is not"
            )
        return super().make_stage_plugins(plugins, stage_idx)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage; see mmdet's ``ResNet``."""
        if kwargs['block'] is BasicBlock and kwargs['plugins'] is not None:
            kwargs['block'] = PluginBasicBlock
        return with_shared_cell(super().make_res_layer(**kwargs))

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> dict:
        """Return the config of the backbone once everything is folded.

        It stays a backbone of mmasr if a DIA remains, or attention in BasicBlocks, which MMDetection's do not
        support.

        Args:
            config (dict): See :meth:`WithASR.deployed_config`.
            network (nn.Module, optional): See :meth:`WithASR.deployed_config`.

        Returns:
            dict: The config.
        """
        plugins = config.get('plugins') or []
        dia = any(plugin['cfg']['type'].rpartition('.')[2] == 'DIA' for plugin in plugins)
        if dia or (plugins and cls.arch_settings[config['depth']][0] is BasicBlock):
            return without_folded(config, network)
        return super().deployed_config(config, network)


def _is_plugin(plugin: object) -> bool:
    if not isinstance(plugin, dict) or not isinstance(plugin.get('cfg'), dict):
        return False
    return 'type' in plugin['cfg'] and 'position' in plugin


@MODELS.register_module()
class ASRResNet(_WithPlugins, ResNet):
    """ResNet of mmdet with ASR, for detectors and for MMPretrain's classifiers.

    Args:
        *args: Arguments of mmdet's ResNet.
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`, such as
            ``dict(attention=dict(type='SE'), init_identity=True)``. Default: None, no ASR.
        convs (dict | Sequence[dict], optional): ``type`` and options of a re-parameterized convolution, such
            as ``dict(type='ACNet')``; ``sites`` as in :func:`mmasr.attach`; or a list of such dicts. Default:
            None, the stock convolutions.
        **kwargs: Arguments of mmdet's ResNet. ``plugins`` work at every depth.
    """

    stock = ResNet


@MODELS.register_module()
class ASRResNetV1d(_WithPlugins, ResNetV1d):
    """ResNetV1d of mmdet with ASR. See :class:`ASRResNet` for the arguments."""

    stock = ResNetV1d


@MODELS.register_module()
class ASRResNeXt(_WithPlugins, ResNeXt):
    """ResNeXt of mmdet with ASR. See :class:`ASRResNet` for the arguments."""

    stock = ResNeXt


@MODELS.register_module()
class ASRResNetCIFAR(_WithPlugins, ResNetCIFAR):
    """ResNetCIFAR of this package with ASR, the paper's network for CIFAR and STL10.

    See :class:`ASRResNet` for the arguments.
    """

    stock = ResNetCIFAR
